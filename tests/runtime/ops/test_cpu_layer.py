"""A layer in one call is its ops one after another, to the last bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from runtime.ops.cpu_kernels import CpuKernels
from runtime.ops.cpu_panels import Panels
from runtime.ops.ops import DenseMlp, Layer
from tests.lab.batches import make_batch
from tests.lab.cpu_arches import library

HIDDEN, INNER, HEADS, KV_HEADS, DIM, BLOCK = 48, 100, 6, 2, 16, 16
WIDE = (HEADS + 2 * KV_HEADS) * DIM
EPS, SCALE = 1e-6, 0.25
STEPS = [[(1, 1)], [(1, 40), (1, 17), (1, 90)], [(33, 33), (1, 20), (7, 64)], [(700, 700)]]


def weights(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16() / 8


def ones(size: int) -> Tensor:
    """Weights of a norm."""
    return torch.rand(size) + 0.5


@pytest.fixture(scope="module")
def panels() -> Panels:
    return Panels(library("native"))


@pytest.fixture(params=["float32", "int8"])
def layer(request: pytest.FixtureRequest, panels: Panels) -> Layer:
    torch.manual_seed(0)
    shapes = [(WIDE, HIDDEN), (HIDDEN, HEADS * DIM), (2 * INNER, HIDDEN), (HIDDEN, INNER)]
    biases = [torch.randn(WIDE), None, None, None]
    pack = panels.pack_bf16 if request.param == "float32" else lambda w, bias: panels.pack_int8(w.float(), bias)
    qkv, o, gate_up, down = (pack(weights(*shape), bias) for shape, bias in zip(shapes, biases, strict=True))
    norms = (ones(DIM), ones(DIM))
    silu_mul = CpuKernels(library("native")).silu_mul
    return Layer(ones(HIDDEN), qkv, norms, o, ones(HIDDEN), DenseMlp(gate_up, down, silu_mul))


@pytest.mark.parametrize("rows", STEPS, ids=str)
@pytest.mark.parametrize("with_norms", [True, False])
def test_a_fused_layer_is_its_ops(panels: Panels, layer: Layer, rows: list[tuple[int, int]], with_norms: bool) -> None:
    ops = CpuKernels(library("native"))
    parts = layer if with_norms else replace(layer, qk_norms=None)
    batch, blocks = make_batch(rows, BLOCK)
    cache = torch.randn(2, blocks, BLOCK, KV_HEADS, DIM)
    x, residual = torch.randn(2, len(batch.tokens), HIDDEN)
    table, next_norm, held = torch.randn(1024, DIM), ones(HIDDEN), cache.clone()
    block = panels.fuse(parts, next_norm, table, EPS, SCALE)
    assert block is not None

    query = ops.rope_write(parts.qkv(x), parts.qk_norms, EPS, table, cache, batch)
    attended = parts.o(ops.attention(query, cache, batch, SCALE).flatten(1))
    middle, total = ops.add_rms_norm(attended, residual, parts.mlp_norm, EPS)
    expected = ops.add_rms_norm(parts.mlp(middle), total, next_norm, EPS)

    found = block(x.clone(), residual.clone(), held, batch)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert torch.equal(held, cache)


def test_a_layer_of_other_linear_layers_is_not_fused(panels: Panels, layer: Layer) -> None:
    other = replace(layer, o=torch.nn.Linear(HEADS * DIM, HIDDEN))
    experts = replace(layer, mlp=torch.nn.Identity())
    assert all(panels.fuse(parts, ones(HIDDEN), torch.ones(8, DIM), EPS, SCALE) is None for parts in (other, experts))
