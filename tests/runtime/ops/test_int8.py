"""Linear layers in int8: every way to compute them gives the numbers of the formula, and no token sees another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from runtime.ops import int8
from runtime.ops.cpu_panels import Panels
from runtime.ops.ops import Linear
from tests.lab.cpu_arches import PARAMS, library

SHAPES = [(960, 576), (50, 33), (17, 64), (33, 100), (32, 20), (1, 1)]
ROWS = [1, 2, 3, 4, 5, 7, 13, 16, 17, 31, 33, 65]

Pack = Callable[[Tensor, Tensor | None], Linear]


@pytest.fixture(scope="module", params=["plain", *PARAMS])
def pack(request: pytest.FixtureRequest) -> Pack:
    return int8.pack_linear if request.param == "plain" else Panels(library(request.param)).pack_int8


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def formula(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The module's formula with the sums in float64, where they are exact."""
    held, (coarse, fine, scale) = int8.quantize(weight), int8.quantize_rows(x)
    q = coarse.double() + fine.double() / int8.FINE
    y = (q @ held.data.double().T) * scale.double()[:, None] * held.scale.double()
    return (y if bias is None else y + bias).float()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_layer_is_the_formula(pack: Pack, shape: tuple[int, int]) -> None:
    weight, bias = torch.randn(shape), torch.randn(shape[0])
    for start in (None, bias):
        linear = pack(weight, start)
        for rows in ROWS:
            x = torch.randn(rows, shape[1])
            # Where a part lies between two fine steps, a fused multiply-add may take the other one.
            torch.testing.assert_close(linear(x), formula(x, weight, start), rtol=1e-5, atol=2e-3)


def test_a_tokens_numbers_do_not_depend_on_its_batch(pack: Pack) -> None:
    linear, x = pack(torch.randn(100, 96), torch.randn(100)), torch.randn(40, 96)
    together = linear(x)
    for rows in (1, 3, 8, 17):
        assert torch.equal(linear(x[:rows]), together[:rows])


def test_extremes_do_not_overflow(pack: Pack) -> None:
    """All products at their largest, of one sign."""
    inputs = 4096
    weight, x = torch.full((32, inputs), -3.0), torch.full((6, inputs), 5.0)
    torch.testing.assert_close(pack(weight, None)(x), torch.full((6, 32), -15.0 * inputs))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_token_that_is_not_finite_spoils_itself_alone(pack: Pack, bad: float) -> None:
    x = torch.randn(7, 96)
    x[2, 5] = bad
    y = pack(torch.randn(40, 96), None)(x)
    assert not y[2].isfinite().any()
    assert y[[0, 1, 3, 4, 5, 6]].isfinite().all()


def test_a_token_of_zeros_is_zero(pack: Pack) -> None:
    assert torch.equal(pack(torch.randn(40, 96), None)(torch.zeros(2, 96)), torch.zeros(2, 40))


def test_activations_keep_16_bits(pack: Pack) -> None:
    x = torch.randn(5, 64)
    y = pack(torch.eye(64), None)(x)
    assert ((y - x).abs() <= x.abs().amax(-1, keepdim=True) * 2**-15).all()


def test_quantized_weights_are_within_half_a_step() -> None:
    weight = torch.randn(30, 50)
    held = int8.quantize(weight)
    assert ((held.data * held.scale[:, None] - weight).abs() <= held.scale[:, None] * 0.5001).all()
