"""On an NVIDIA GPU: the same tokens as transformers, with CUDA graphs and steps that run ahead too, and a KV pool that
fits the card. Run by `make gpu-check`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from runtime.engine.graphs import graph_sizes
from runtime.engine.memory import gpu_pool
from runtime.engine.runner import Runner
from runtime.engine.scheduler import Row
from runtime.ipc import Sampling
from runtime.model.checkpoint import Checkpoint, read_model_spec
from runtime.model.decoder import load_decoder
from runtime.ops.ops import choose
from runtime.ops.sampling import Drawn
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


@pytest.mark.parametrize("name", list(checkpoints.CONFIGS))
def test_steps_that_run_ahead_as_cuda_graphs_give_the_same_tokens(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    checkpoints.save(name, tmp_path)
    prompts = [[(7 * i + 3 * n) % checkpoints.VOCAB for i in range(n)] for n in (1, 5, 16, 17, 40, 90)]
    ways = [
        Sampling(NEW_TOKENS, temperature=0, ignore_eos=True),
        Sampling(NEW_TOKENS, temperature=0.9, min_p=0.02, seed=1, ignore_eos=True),
        Sampling(NEW_TOKENS, temperature=0.9, top_k=20, top_p=0.9, seed=2, ignore_eos=True),
    ]
    runner, requests = load(tmp_path, torch.float32), [(p, way) for p in prompts for way in ways]
    expected = serve(runner, requests, blocks=300, budget=128).tokens
    found = serve(runner, requests, blocks=300, budget=128, overlap=True, recorded=graph_sizes(len(requests)))
    assert found.tokens == expected
    assert "no CUDA graphs" not in caplog.text


def test_no_launch_waits_for_the_device(tmp_path: Path) -> None:
    checkpoints.save("qwen3-moe", tmp_path)
    runner = load(tmp_path, torch.bfloat16)
    ways = [Sampling(NEW_TOKENS, top_k=5, ignore_eos=True), Sampling(NEW_TOKENS, logprobs=2, logit_bias=((3, 1.0),))]
    requests = [([1, 2, 3, n], way) for n in range(3) for way in ways]
    serve(runner, requests, blocks=100, recorded=[1, 2, 4, 8])  # compiles what is compiled at its first launch
    launch = runner.launch

    def watched(rows: list[Row], allowed: Mapping[str, Tensor] | None = None) -> Drawn:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(rows, allowed)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    runner.launch = watched  # type: ignore[method-assign]
    assert all(serve(runner, requests, blocks=100, overlap=True, recorded=[1, 2, 4, 8]).tokens)


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
