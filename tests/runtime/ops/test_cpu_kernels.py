"""The C++ kernels compute what the plain-torch reference computes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from runtime.ops import cpu, cpu_kernels, reference
from runtime.ops.cpu_kernels import CpuKernels
from tests.lab.batches import make_batch
from tests.lab.cpu_arches import PARAMS, library

EPS = 1e-5
CACHED = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module", params=PARAMS)
def kernels(request: pytest.FixtureRequest) -> CpuKernels:
    return CpuKernels(library(request.param))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def kernel_layout(cache: torch.Tensor) -> torch.Tensor:
    """The reference's cache as the kernels keep it: in a block, keys [K, D, block_size], values [K, block_size, D]."""
    out = torch.empty_like(cache)
    out[0] = cache[0].permute(0, 2, 3, 1).reshape(cache[0].shape)
    out[1] = cache[1].permute(0, 2, 1, 3).reshape(cache[1].shape)
    return out


@pytest.mark.parametrize("shape", [(1, 576), (5, 64), (300, 130), (2, 7)])
def test_rms_norm_equals_the_reference(kernels: CpuKernels, shape: tuple[int, int]) -> None:
    x, weight = torch.randn(shape), torch.randn(shape[1])
    torch.testing.assert_close(kernels.rms_norm(x, weight, EPS), reference.rms_norm(x, weight, EPS))


@pytest.mark.parametrize("shape", [(1, 576), (300, 130)])
def test_add_rms_norm_equals_the_reference(kernels: CpuKernels, shape: tuple[int, int]) -> None:
    x, residual, weight = torch.randn(shape), torch.randn(shape), torch.randn(shape[1])
    for got, want in zip(
        kernels.add_rms_norm(x, residual, weight, EPS), reference.add_rms_norm(x, residual, weight, EPS), strict=True
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("shape", [(1, 3072), (40, 2 * 37)])
def test_silu_mul_equals_the_reference_up_to_its_extremes(kernels: CpuKernels, shape: tuple[int, int]) -> None:
    gate_up = torch.randn(shape) * 10
    gate_up[0, :4] = torch.tensor([-200.0, 200.0, 0.0, -88.5])
    torch.testing.assert_close(kernels.silu_mul(gate_up), reference.silu_mul(gate_up))


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 32), (8, 2, 20)])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("cached", CACHED)
def test_rope_write_equals_the_reference(
    kernels: CpuKernels, heads: int, kv_heads: int, dim: int, normed: bool, cached: torch.dtype
) -> None:
    batch, blocks = make_batch([(1, 9), (7, 7), (5, 21)], 4)
    qkv = torch.randn(13, (heads + 2 * kv_heads) * dim)
    table = torch.randn(64, dim)
    norms = (torch.randn(dim), torch.randn(dim)) if normed else None
    caches = [torch.zeros(2, blocks, 4, kv_heads, dim, dtype=cached) for _ in range(2)]
    got = kernels.rope_write(qkv, norms, EPS, table, caches[0], batch)
    want = reference.rope_write(qkv, norms, EPS, table, caches[1], batch)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(caches[0], kernel_layout(caches[1]))


ROWS = [
    [(1, 1)],
    [(1, 200)],
    [(1, 17), (1, 16), (1, 15), (1, 300)],
    [(40, 40), (1, 33), (5, 70), (33, 333), (2, 2)],
]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 32), (16, 2, 20)])
@pytest.mark.parametrize("block_size", [16, 4, 32])
@pytest.mark.parametrize("cached", CACHED)
def test_attention_equals_the_reference(
    kernels: CpuKernels,
    rows: list[tuple[int, int]],
    heads: int,
    kv_heads: int,
    dim: int,
    block_size: int,
    cached: torch.dtype,
) -> None:
    batch, blocks = make_batch(rows, block_size)
    cache = torch.randn(2, blocks, block_size, kv_heads, dim, dtype=cached)
    query = torch.randn(sum(count for count, _ in rows), heads, dim)
    want = reference.attention(query, cache, batch, dim**-0.5)
    torch.testing.assert_close(
        kernels.attention(query, kernel_layout(cache), batch, dim**-0.5), want, rtol=2e-5, atol=2e-5
    )
    torch.testing.assert_close(cpu.attention(query, cache, batch, dim**-0.5), want, rtol=2e-5, atol=2e-5)


def test_attention_is_exact_where_one_score_dwarfs_the_others(kernels: CpuKernels) -> None:
    batch, blocks = make_batch([(1, 40)], 16)
    cache = torch.randn(2, blocks, 16, 2, 32)
    query = torch.randn(1, 4, 32) * 500
    want = reference.attention(query, cache, batch, 1.0)
    torch.testing.assert_close(kernels.attention(query, kernel_layout(cache), batch, 1.0), want, rtol=1e-4, atol=1e-4)


def test_a_key_that_is_not_a_number_shows_in_the_output(kernels: CpuKernels) -> None:
    batch, blocks = make_batch([(1, 20)], 16)
    cache = torch.randn(2, blocks, 16, 1, 32)
    cache[0, batch.tables[0, 0], 3] = float("nan")
    assert kernels.attention(torch.randn(1, 2, 32), kernel_layout(cache), batch, 1.0).isnan().any()


def test_what_is_no_number_or_too_large_stays_so_in_16_bits(kernels: CpuKernels) -> None:
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 3.4e38, 1.00390625, 1.01171875, 1e-40, -0.0])
    batch, blocks = make_batch([(1, 1)], 4)
    cache = torch.zeros(2, blocks, 4, 1, 8, dtype=torch.bfloat16)
    kernels.rope_write(torch.cat([torch.zeros(16), values])[None], None, EPS, torch.zeros(4, 8), cache, batch)
    written = cache[1].flatten(0, 1)[batch.slots[0], 0]
    torch.testing.assert_close(written, values.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("tokens", [1, 2, 7, 12, 13, 130])
@pytest.mark.parametrize(("outputs", "inputs"), [(70, 33), (64, 1300), (1, 5), (513, 512)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_packed_linear_layers_equal_the_plain_one(
    kernels: CpuKernels, tokens: int, outputs: int, inputs: int, with_bias: bool
) -> None:
    weight, x = torch.randn(outputs, inputs), torch.randn(tokens, inputs)
    bias = torch.randn(outputs) if with_bias else None
    want = torch.nn.functional.linear(x, weight, bias)
    for pack in (kernels.pack_linear, cpu.pack_linear):
        torch.testing.assert_close(pack(weight, bias)(x), want, rtol=1e-4, atol=1e-3)


def test_a_row_of_a_linear_layer_does_not_depend_on_its_neighbours(kernels: CpuKernels) -> None:
    linear = kernels.pack_linear(torch.randn(100, 700), None)
    x = torch.randn(40, 700)
    together = linear(x)
    assert all(torch.equal(linear(x[i : i + 1])[0], together[i]) for i in range(40))


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (2, 1), (9, 3), (8, 2), (5, 1)])
def test_a_tokens_attention_does_not_depend_on_the_chunk_it_runs_in(
    kernels: CpuKernels, heads: int, kv_heads: int
) -> None:
    context, dim, block_size = 70, 16, 16
    whole, blocks = make_batch([(context, context)], block_size)
    cache = torch.randn(2, blocks, block_size, kv_heads, dim)
    query = torch.randn(context, heads, dim)
    expected = kernels.attention(query, cache, whole, 0.25)
    for chunk in (1, 3, 7):
        pieces = []
        for start in range(0, context, chunk):
            count = min(chunk, context - start)
            piece = replace(
                whole,
                starts=torch.tensor([0, count], dtype=torch.int32),
                contexts=torch.tensor([start + count], dtype=torch.int32),
                rows=((count, start + count),),
            )
            pieces.append(kernels.attention(query[start : start + count], cache, piece, 0.25))
        assert torch.equal(torch.cat(pieces), expected)


def test_without_a_compiler_torch_does_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ops = cpu.cpu_ops()
    assert ops.name == "cpu-torch"
    assert ops.attention is cpu.attention


def test_a_compiler_that_fails_is_not_fatal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "g++"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho nonsense >&2; exit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cpu_kernels.load_library() is None


def test_rows_of_a_batch_do_not_see_each_other(kernels: CpuKernels) -> None:
    batch, blocks = make_batch([(3, 30), (4, 50)], 16)
    cache = torch.randn(2, blocks, 16, 2, 32)
    query = torch.randn(7, 4, 32)
    together = kernels.attention(query, cache, batch, 0.2)
    second = replace(
        batch, starts=torch.tensor([0, 4], dtype=torch.int32), contexts=batch.contexts[1:],
        tables=batch.tables[1:].contiguous(), rows=batch.rows[1:],
    )  # fmt: skip
    assert torch.equal(kernels.attention(query[3:], cache, second, 0.2), together[3:])
