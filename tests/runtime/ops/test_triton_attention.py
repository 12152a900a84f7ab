"""The Triton attention kernels compute what the plain-torch reference computes in float32.

To 10⁻⁵ in float32, 2·10⁻³ in float16, 2·10⁻² in bfloat16, whose products a tile rounds once more than exact arithmetic.
"""

import os
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from runtime.ops import reference
from runtime.ops import triton_attention as kernels
from runtime.ops.batch import Batch
from tests.lab.batches import make_batch
from tests.runtime.ops.conftest import Place

BLOCK = 16
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
# Query heads, key-value heads, head size: one to eight query heads a group, three and seven among them (SmolLM2-135M
# has 9 and 3, Qwen2.5-7B 28 and 4). What is here must pass on every push; `slow` has the rest.
SHAPES = [(6, 2, 64)]
MORE_SHAPES = [
    (7, 1, 128),
    (2, 2, 64),
    (2, 2, 128),
    (9, 3, 64),
    (8, 2, 128),
    (8, 1, 64),
    (14, 2, 128),
    (4, 2, 8),
    (4, 1, 80),
]
ALL_SHAPES = [*SHAPES, *(pytest.param(*shape, marks=pytest.mark.slow) for shape in MORE_SHAPES)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes some milliseconds for each program; as many as here still split the longer contexts."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        monkeypatch.setattr(kernels, "PROGRAMS", 12)


def make_inputs(
    rows: list[tuple[int, int]], heads: int, kv_heads: int, dim: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Batch]:
    """Query, cache and batch; what no request owns is not a number."""
    batch, blocks = make_batch(rows, BLOCK, device)
    cache = torch.full((2, blocks, BLOCK, kv_heads, dim), float("nan"), dtype=dtype, device=device)
    for row, (_, context) in enumerate(rows):
        for position in range(context):
            block = batch.tables[row, position // BLOCK]
            cache[:, block, position % BLOCK] = torch.randn(2, kv_heads, dim, dtype=dtype, device=device)
    query = torch.randn(sum(count for count, _ in rows), heads, dim, dtype=dtype, device=device)
    return query, cache, batch


def assert_equals_the_reference(query: Tensor, cache: Tensor, batch: Batch) -> None:
    scale = query.shape[2] ** -0.5
    want = reference.attention(query.float(), cache.float(), batch, scale)
    got = kernels.attention(query, cache, batch, scale)
    assert got.dtype == query.dtype
    tolerance = TOLERANCE[query.dtype]
    torch.testing.assert_close(got.float(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), ALL_SHAPES)
def test_decodes_of_short_and_long_contexts(place: Place, heads: int, kv_heads: int, dim: int) -> None:
    rows = [(1, 17), (1, 1), (1, 300)]
    assert_equals_the_reference(*make_inputs(rows, heads, kv_heads, dim, *place))


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), ALL_SHAPES)
def test_whole_prompts_chunks_of_prompts_and_decodes_in_one_batch(
    place: Place, heads: int, kv_heads: int, dim: int
) -> None:
    rows = [(20, 20), (1, 33), (5, 70), (2, 2)]
    assert_equals_the_reference(*make_inputs(rows, heads, kv_heads, dim, *place))


@pytest.mark.parametrize(
    "context", [16, 65, *(pytest.param(context, marks=pytest.mark.slow) for context in (15, 64, 128))]
)
def test_a_context_that_ends_at_the_edge_of_a_block_or_tile(device: torch.device, context: int) -> None:
    assert_equals_the_reference(*make_inputs([(1, context)], 3, 1, 64, device, torch.float32))
    assert_equals_the_reference(*make_inputs([(2, context)], 3, 1, 64, device, torch.float32))


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (14, 2, 128)])
def test_long_prompts_of_many_tiles(place: Place, heads: int, kv_heads: int, dim: int) -> None:
    rows = [(150, 150), (1, 500), (40, 333), (64, 64), (1, 1), (33, 33)]
    assert_equals_the_reference(*make_inputs(rows, heads, kv_heads, dim, *place))


def test_what_a_decode_computes_depends_on_nothing_that_the_host_knows(device: torch.device) -> None:
    """As in a replayed CUDA graph: shapes and `rows` are those of the capture, the tensors are new."""
    query, cache, batch = make_inputs([(1, 130), (1, 40)], 3, 1, 64, device, torch.float32)
    captured = replace(batch, rows=((1, 1), (1, 1)))
    want = reference.attention(query, cache, batch, 0.125)
    torch.testing.assert_close(kernels.attention(query, cache, captured, 0.125), want, rtol=1e-5, atol=1e-5)


def test_padding_rows_are_finite_and_change_no_other_row(device: torch.device) -> None:
    query, cache, batch = make_inputs([(1, 70), (1, 1), (1, 1)], 3, 1, 64, device, torch.float32)
    cache[:, 0] = 0
    batch.tables[1:] = 0
    assert_equals_the_reference(query, cache, batch)
    assert kernels.attention(query, cache, batch, 1.0).isfinite().all()


def test_a_prompts_tokens_do_not_depend_on_the_chunk_they_run_in(device: torch.device) -> None:
    query, cache, whole = make_inputs([(40, 40)], 3, 1, 64, device, torch.float32)
    expected = kernels.attention(query, cache, whole, 0.125)
    tail = replace(whole, starts=torch.tensor([0, 7], dtype=torch.int32, device=device), rows=((7, 40),))
    assert torch.equal(kernels.attention(query[33:], cache, tail, 0.125), expected[33:])


def test_one_score_that_dwarfs_the_others(device: torch.device) -> None:
    query, cache, batch = make_inputs([(1, 100)], 3, 1, 64, device, torch.float32)
    assert_equals_the_reference(query * 50, cache, batch)


@pytest.mark.parametrize("count", [1, 2])
def test_a_key_that_is_not_a_number_shows_in_the_output(device: torch.device, count: int) -> None:
    query, cache, batch = make_inputs([(count, 80)], 3, 1, 64, device, torch.float32)
    cache[0, batch.tables[0, 0], 3] = float("nan")
    assert kernels.attention(query, cache, batch, 1.0).isnan().any(-1).all()


@pytest.mark.parametrize("count", [1, 2])
def test_a_pool_of_more_than_2_31_numbers(device: torch.device, count: int) -> None:
    kv_heads, dim = 8, 128
    blocks = 2**31 // (BLOCK * kv_heads * dim) + 2
    cache = torch.empty(1, blocks, BLOCK, kv_heads, dim, dtype=torch.float16, device=device).expand(2, -1, -1, -1, -1)
    batch, _ = make_batch([(count, 5)], BLOCK, device)
    batch.tables.fill_(blocks - 1)
    cache[0, -1] = torch.randn(BLOCK, kv_heads, dim, dtype=torch.float16, device=device)
    query = torch.randn(count, kv_heads, dim, dtype=torch.float16, device=device)
    want = reference.attention(query, cache, batch, 0.1)
    torch.testing.assert_close(kernels.attention(query, cache, batch, 0.1), want, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("requests", "kv_heads"), [(1, 1), (1, 4), (3, 3), (64, 8), (1024, 8)])
def test_segments_are_a_power_of_two_that_fills_a_gpu_and_no_more(requests: int, kv_heads: int) -> None:
    segments = kernels.count_segments(requests, kv_heads)
    assert segments in (1, 2, 4, 8, 16, 32, 64)
    assert segments * requests * kv_heads < 2 * kernels.PROGRAMS or segments == 1
