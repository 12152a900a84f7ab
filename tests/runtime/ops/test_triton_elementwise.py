"""The small Triton kernels compute what the plain-torch reference computes, rounding where it rounds.

In float32 to 10⁻⁵; in float16 and bfloat16 to two units in the last place.
"""

import pytest
import torch
from torch import Tensor

from runtime.ops import reference
from runtime.ops import triton_elementwise as kernels
from tests.lab.batches import make_batch
from tests.runtime.ops.conftest import Place

EPS = 1e-5


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def assert_equal(got: Tensor, want: Tensor) -> None:
    tolerance = 1e-5 if got.dtype == torch.float32 else 2 * torch.finfo(got.dtype).eps
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(3, 576), (2, 7)])
def test_rms_norm_equals_the_reference(place: Place, shape: tuple[int, int]) -> None:
    x, weight = (
        torch.randn(shape, dtype=place.dtype, device=place.device),
        torch.randn(shape[1], dtype=place.dtype, device=place.device),
    )
    assert_equal(kernels.rms_norm(x, weight, EPS), reference.rms_norm(x, weight, EPS))


def test_rms_norm_of_rows_that_do_not_follow_each_other(device: torch.device) -> None:
    x, weight = torch.randn(4, 64, device=device)[::2], torch.randn(64, device=device)
    assert_equal(kernels.rms_norm(x, weight, EPS), reference.rms_norm(x, weight, EPS))


@pytest.mark.parametrize("shape", [(3, 576), (2, 130)])
def test_add_rms_norm_equals_the_reference(place: Place, shape: tuple[int, int]) -> None:
    x, residual = (torch.randn(shape, dtype=place.dtype, device=place.device) for _ in range(2))
    weight = torch.randn(shape[1], dtype=place.dtype, device=place.device)
    want = reference.add_rms_norm(x, residual, weight, EPS)
    for got, expected in zip(kernels.add_rms_norm(x, residual, weight, EPS), want, strict=True):
        assert_equal(got, expected)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@pytest.mark.parametrize("shape", [(2, 3072), (3, 2 * 37)])
def test_silu_mul_equals_the_reference_up_to_its_extremes(place: Place, shape: tuple[int, int]) -> None:
    gate_up = torch.randn(shape, dtype=place.dtype, device=place.device) * 10
    gate_up[0, :4] = torch.tensor([-200.0, 200.0, 0.0, -88.5])
    assert_equal(kernels.silu_mul(gate_up), reference.silu_mul(gate_up))


def test_silu_mul_of_no_rows_is_no_rows(device: torch.device) -> None:
    assert kernels.silu_mul(torch.empty(0, 8, device=device)).shape == (0, 4)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"),
    [(4, 2, 20), *(pytest.param(*shape, marks=pytest.mark.slow) for shape in ((3, 1, 64), (28, 4, 128)))],
)
@pytest.mark.parametrize("normed", [False, True])
def test_rope_write_equals_the_reference(place: Place, heads: int, kv_heads: int, dim: int, normed: bool) -> None:
    batch, blocks = make_batch([(1, 9), (2, 2), (1, 21)], 16, place.device)
    qkv = torch.randn(4, (heads + 2 * kv_heads) * dim, dtype=place.dtype, device=place.device)
    table = torch.randn(64, dim, device=place.device)
    norms = None
    if normed:
        norms = (
            torch.randn(dim, dtype=place.dtype, device=place.device),
            torch.randn(dim, dtype=place.dtype, device=place.device),
        )
    caches = [torch.zeros(2, blocks, 16, kv_heads, dim, dtype=place.dtype, device=place.device) for _ in range(2)]
    got = kernels.rope_write(qkv, norms, EPS, table, caches[0], batch)
    want = reference.rope_write(qkv, norms, EPS, table, caches[1], batch)
    assert_equal(got, want)
    assert_equal(caches[0], caches[1])


def test_keys_and_values_find_their_place_in_a_pool_of_more_than_2_31_numbers(device: torch.device) -> None:
    kv_heads, dim = 8, 128
    blocks = 2**31 // (16 * kv_heads * dim) + 2
    cache = torch.empty(1, blocks, 16, kv_heads, dim, dtype=torch.float16, device=device).expand(2, -1, -1, -1, -1)
    batch, _ = make_batch([(1, 1)], 16, device)
    batch.slots.fill_(16 * blocks - 1)
    qkv = torch.randn(1, 10 * dim + 7 * 2 * dim, dtype=torch.float16, device=device)
    kernels.rope_write(qkv, None, EPS, torch.randn(4, dim, device=device), cache, batch)
    assert torch.equal(cache[1, -1, -1].flatten(), qkv[0, -kv_heads * dim :])
