"""Linear layers with weights in bfloat16 are those of float32, on every kind of CPU and whatever rows are together."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.ops import cpu
from runtime.ops.cpu_panels import Panels
from tests.lab.cpu_arches import PARAMS, library

SHAPES = [(960, 576), (50, 33), (17, 64), (576, 1536), (33, 100), (32, 20), (1, 1)]
ROWS = [1, 2, 3, 5, 7, 12, 13, 16, 17, 31, 33, 65, 200]


@pytest.fixture(scope="module", params=PARAMS)
def panels(request: pytest.FixtureRequest) -> Panels:
    return Panels(library(request.param))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def halves(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_as_exact_as_float32(panels: Panels, shape: tuple[int, int]) -> None:
    weight, bias = halves(*shape), torch.randn(shape[0])
    for start in (None, bias):
        linear = panels.pack_bf16(weight, start)
        for rows in ROWS:
            x = torch.randn(rows, shape[1])
            exact = F.linear(x.double(), weight.double(), None if start is None else start.double())
            bound = 2e-6 * F.linear(x.abs(), weight.float().abs()).max() + 1e-7  # of a sum in float32 of such products
            assert (linear(x) - exact).abs().max() < bound


def test_all_24_bits_of_x_count(panels: Panels) -> None:
    """x cut to 16 bits, which AMX multiplies, would lose what is behind the first eight."""
    x = torch.tensor([[1.0 + 2**-23], [1.0 + 2**-12 + 2**-20], [-(1.0 - 2**-24)]])
    assert torch.equal(panels.pack_bf16(torch.ones(1, 1).bfloat16(), None)(x), x)


def test_a_rows_numbers_do_not_depend_on_the_rows_beside_it(panels: Panels) -> None:
    linear, x = panels.pack_bf16(halves(100, 96), torch.randn(100)), torch.randn(70, 96)
    together = linear(x)
    for rows in (1, 2, 5, 12, 17, 33):
        assert torch.equal(linear(x[:rows]), together[:rows])


def test_what_is_not_finite_stays_so_in_its_row_alone(panels: Panels) -> None:
    x = torch.randn(7, 96)
    x[2, 5] = torch.nan
    x[4, 1] = torch.inf
    y = panels.pack_bf16(halves(40, 96), None)(x)
    assert not y[[2, 4]].isfinite().any()
    assert y[[0, 1, 3, 5, 6]].isfinite().all()


def test_weights_that_are_not_in_bfloat16_are_not_rounded() -> None:
    library("native")
    weight, x = torch.randn(64, 48), torch.randn(5, 48)
    linear = cpu.cpu_ops().pack_linear(weight, None)
    torch.testing.assert_close(linear(x), F.linear(x, weight), rtol=1e-5, atol=1e-5)
