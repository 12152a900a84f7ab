"""A turned residual stream leaves the model what it is, and makes int8 lose less."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from runtime.engine.runner import Runner
from runtime.engine.scheduler import Row
from runtime.engine.sequence import Sequence
from runtime.ipc import Sampling
from runtime.model.basis import AS_TRAINED, Basis, Turned
from runtime.model.checkpoint import Checkpoint, read_model_spec
from runtime.model.decoder import load_decoder
from runtime.ops.ops import REFERENCE, Ops, choose
from tests.lab import checkpoints

CPU = torch.device("cpu")
TOKENS = [(7 * i) % checkpoints.VOCAB for i in range(40)]


def logits(folder: Path, ops: Ops, basis: Basis) -> Tensor:
    """Of the last token of TOKENS."""
    spec = read_model_spec(folder)
    model = load_decoder(spec, Checkpoint(folder), ops, device=CPU, dtype=torch.float32, max_model_len=64, basis=basis)
    runner = Runner(model, device=CPU, dtype=torch.float32, block_size=16)
    runner.allocate(8)
    request = Sequence("", TOKENS, Sampling(max_tokens=1))
    request.blocks = [1, 2, 3]
    return runner.logits([Row(request, 0, len(TOKENS), samples=True)])[0]


@pytest.fixture(scope="module", params=list(checkpoints.CONFIGS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp(request.param)
    checkpoints.save(request.param, path)
    return path


@pytest.mark.parametrize("hidden", [64, 576, 896, 40, 7])
def test_the_matrix_is_orthogonal(hidden: int) -> None:
    turned = Turned.of(hidden)
    matrix = turned.rows(torch.eye(hidden))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(hidden), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_a_turned_model_has_the_same_logits(folder: Path) -> None:
    turned = Turned.of(read_model_spec(folder).hidden_size)
    torch.testing.assert_close(
        logits(folder, REFERENCE, turned), logits(folder, REFERENCE, AS_TRAINED), rtol=1e-3, atol=1e-3
    )


@torch.inference_mode()
def test_int8_is_near_float32(folder: Path) -> None:
    """Random weights lose far more than trained ones, whose loss bench.quality measures."""
    turned = Turned.of(read_model_spec(folder).hidden_size)
    exact = logits(folder, REFERENCE, AS_TRAINED)
    found = logits(folder, choose(CPU, torch.float32, "int8"), turned)
    assert torch.nn.functional.cosine_similarity(found, exact, dim=0) > 0.98


@torch.inference_mode()
def test_where_few_channels_are_large_int8_loses_less_when_turned(tmp_path: Path) -> None:
    model = checkpoints.save("llama", tmp_path)
    for layer in model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.data[3] *= 40
    model.save_pretrained(tmp_path)
    exact, ops = logits(tmp_path, REFERENCE, AS_TRAINED), choose(CPU, torch.float32, "int8")
    loss = [(logits(tmp_path, ops, basis) - exact).square().mean() for basis in (AS_TRAINED, Turned.of(64))]
    assert loss[1] < 0.9 * loss[0]
