"""Models in int8: near float32, and a request's tokens are its own, whatever runs beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from runtime.engine.runner import Runner
from runtime.engine.scheduler import Row
from runtime.engine.sequence import Sequence
from runtime.ipc import Sampling
from runtime.model.checkpoint import Checkpoint, read_model_spec
from runtime.model.decoder import load_decoder
from runtime.ops.ops import choose
from tests.lab import checkpoints
from tests.lab.offline import serve

CPU = torch.device("cpu")
TOKENS = [(7 * i) % checkpoints.VOCAB for i in range(40)]


@pytest.fixture(scope="module", params=list(checkpoints.CONFIGS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp(request.param)
    checkpoints.save(request.param, path)
    return path


def load(folder: Path, quantization: str | None) -> Runner:
    ops, spec = choose(CPU, torch.float32, quantization), read_model_spec(folder)
    model = load_decoder(spec, Checkpoint(folder), ops, device=CPU, dtype=torch.float32, max_model_len=128)
    return Runner(model, device=CPU, dtype=torch.float32, block_size=16)


@torch.inference_mode()
def logits(runner: Runner) -> Tensor:
    """Of the last token of TOKENS."""
    runner.allocate(8)
    request = Sequence("", TOKENS, Sampling(max_tokens=1))
    request.blocks = [1, 2, 3]
    return runner.logits([Row(request, 0, len(TOKENS), samples=True)])[0]


def test_int8_is_near_float32(folder: Path) -> None:
    """Random weights lose more than trained ones, whose loss bench.quality measures."""
    exact, found = logits(load(folder, None)), logits(load(folder, "int8"))
    assert torch.nn.functional.cosine_similarity(found, exact, dim=0) > 0.98


def test_in_int8_a_requests_tokens_are_those_that_it_has_alone(folder: Path) -> None:
    runner = load(folder, "int8")
    sampling = Sampling(8, temperature=0, ignore_eos=True)
    requests = [(TOKENS[:count], sampling) for count in (1, 3, 16, 17, 33, 40)]
    together = serve(runner, requests, blocks=60, budget=50, seats=6, max_model_len=128).tokens
    alone = [serve(runner, [one], blocks=60, budget=50, seats=1, max_model_len=128).tokens[0] for one in requests]
    assert together == alone
