"""On an NVIDIA GPU: the same tokens as transformers, and a KV pool that fits the card. Run by `make gpu-check`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from runtime.engine.blocks import BlockPool
from runtime.engine.memory import gpu_pool
from runtime.engine.runner import Runner
from runtime.engine.scheduler import Scheduler
from runtime.engine.sequence import Sequence
from runtime.ipc import Sampling
from runtime.model.checkpoint import Checkpoint, read_model_spec
from runtime.model.decoder import load_decoder
from runtime.ops.ops import choose
from tests.lab import checkpoints

pytestmark = pytest.mark.gpu
NEW_TOKENS = 16


def load(folder: Path, dtype: torch.dtype) -> Runner:
    device = torch.device("cuda:0")
    model = load_decoder(
        read_model_spec(folder),
        Checkpoint(folder),
        choose(device, dtype),
        device=device,
        dtype=dtype,
        max_model_len=512,
    )
    return Runner(model, device=device, dtype=dtype, block_size=16)


@pytest.mark.parametrize("name", list(checkpoints.CONFIGS))
def test_greedy_tokens_in_float32_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    reference = checkpoints.save(name, tmp_path)
    prompts = [[(7 * i + 3 * n) % checkpoints.VOCAB for i in range(n)] for n in (1, 5, 16, 17, 40, 90)]
    runner = load(tmp_path, torch.float32)
    runner.allocate(100)
    scheduler = Scheduler(BlockPool(100, 16), max_model_len=512, max_num_seqs=8, max_batched_tokens=32)
    seqs = [Sequence(str(i), p, Sampling(NEW_TOKENS, temperature=0, ignore_eos=True)) for i, p in enumerate(prompts)]
    for seq in seqs:
        scheduler.add(seq)
    while scheduler.has_work:
        rows = scheduler.plan()
        scheduler.apply(rows, [sample.token for sample in runner.step(rows)])
        for row in rows:
            if row.samples and row.seq.finish_reason(frozenset(), 512):
                scheduler.finish(row.seq)
    expected = [checkpoints.greedy(reference, prompt, NEW_TOKENS) for prompt in prompts]
    assert [seq.tokens[seq.num_prompt :] for seq in seqs] == expected


def test_the_measured_pool_fits_beside_the_model(tmp_path: Path) -> None:
    checkpoints.save("qwen3", tmp_path)
    runner = load(tmp_path, torch.bfloat16)
    runner.allocate(2)
    runner.rehearse(512, 8)
    total = torch.cuda.get_device_properties(0).total_memory
    pool = gpu_pool(0.5, runner.kv_bytes_per_block, useful_blocks=10**9)
    runner.allocate(pool.blocks)
    free, _ = torch.cuda.mem_get_info()
    assert total - free <= total * 0.5 + 2**30
