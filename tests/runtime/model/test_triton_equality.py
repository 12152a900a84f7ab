"""Greedy tokens through the GPU's ops equal transformers' generate: here in Triton's interpreter, which is slow.

On a GPU, tests/runtime/model/test_gpu.py says the same of the compiled kernels.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from runtime.engine.runner import Runner
from runtime.ipc import Sampling
from runtime.model.checkpoint import Checkpoint, read_model_spec
from runtime.model.decoder import load_decoder
from runtime.ops import triton_attention
from runtime.ops.gpu import gpu_ops
from runtime.ops.ops import REFERENCE
from tests.lab import checkpoints
from tests.lab.offline import serve

CPU = torch.device("cpu")
NEW_TOKENS = 2
BLOCK = 4
PROMPTS = [[(7 * i + 3 * n) % checkpoints.VOCAB for i in range(n)] for n in (2, 6)]
BUDGET = 5  # tokens a step: the longer prompt comes in chunks, beside decodes of the shorter one
FAST = "qwen3"  # qk-norm, grouped heads


@pytest.mark.parametrize(
    "name", [name if name == FAST else pytest.param(name, marks=pytest.mark.slow) for name in checkpoints.CONFIGS]
)
def test_greedy_tokens_equal_those_of_transformers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_attention, "PROGRAMS", 1)
    reference = checkpoints.save(name, tmp_path)
    expected = [checkpoints.greedy(reference, prompt, NEW_TOKENS) for prompt in PROMPTS]
    ops, spec = gpu_ops(REFERENCE, torch.float32), read_model_spec(tmp_path)
    model = load_decoder(spec, Checkpoint(tmp_path), ops, device=CPU, dtype=torch.float32, max_model_len=64)
    runner = Runner(model, device=CPU, dtype=torch.float32, block_size=BLOCK)
    requests = [(prompt, Sampling(NEW_TOKENS, temperature=0, ignore_eos=True)) for prompt in PROMPTS]
    assert serve(runner, requests, blocks=10, budget=BUDGET, seats=2, max_model_len=64).tokens == expected
