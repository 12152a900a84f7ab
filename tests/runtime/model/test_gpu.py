"""On an NVIDIA GPU: the same tokens as transformers, and a KV pool that fits the card. Run by `make gpu-check`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from runtime.engine.memory import gpu_pool
from runtime.engine.runner import Runner
from runtime.ipc import Sampling
from runtime.model.checkpoint import Checkpoint, read_model_spec
from runtime.model.decoder import load_decoder
from runtime.ops.ops import choose
from tests.lab import checkpoints
from tests.lab.offline import serve

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
    greedy = Sampling(NEW_TOKENS, temperature=0, ignore_eos=True)
    runner, requests = load(tmp_path, torch.float32), [(prompt, greedy) for prompt in prompts]
    expected = [checkpoints.greedy(reference, prompt, NEW_TOKENS) for prompt in prompts]
    assert serve(runner, requests, blocks=100, budget=32, seats=8).tokens == expected


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
