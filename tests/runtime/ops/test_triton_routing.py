"""Tokens go to the experts that the reference chooses, and pairs are sorted by expert, first come first."""

from __future__ import annotations

import pytest
import torch

from runtime.ops import reference, triton_routing
from runtime.ops.triton_routing import MINE, route, sort_pairs
from tests.runtime.ops.conftest import Place


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("experts", "top_k", "norm"), [(20, 3, True), pytest.param(8, 2, False, marks=pytest.mark.slow)]
)
def test_experts_and_their_weights_are_those_of_the_reference(
    place: Place, experts: int, top_k: int, norm: bool
) -> None:
    logits = torch.stack([torch.randperm(experts) for _ in range(5)]).to(place.device, place.dtype) / 4  # no ties
    weights, chosen = route(logits, top_k, norm)
    want, its = reference.route(logits, top_k, norm)
    assert chosen.tolist() == its.tolist()
    torch.testing.assert_close(weights, want, rtol=2 * torch.finfo(place.dtype).eps, atol=1e-7)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_token_that_is_no_number_goes_to_experts_that_exist(device: torch.device) -> None:
    logits = torch.randn(2, 20, device=device)
    logits[0] = torch.nan
    weights, chosen = route(logits, 3, True)
    assert bool(((chosen >= 0) & (chosen < 20)).all())
    assert bool(weights[1].isfinite().all())


@pytest.mark.parametrize("own", [range(20), range(5, 10), range(19, 20)])
def test_both_ways_to_sort_agree(device: torch.device, own: range, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = torch.randint(0, 20, (MINE // 2 + 30, 2), device=device, dtype=torch.int32)  # more than one program
    weights = torch.rand(chosen.shape, device=device)
    compared = sort_pairs(weights, chosen, own)
    monkeypatch.setattr(triton_routing, "RANKED", 0)
    sorted_ = sort_pairs(weights, chosen, own)
    assert compared.order.tolist() == sorted_.order.tolist()
    assert compared.bounds.tolist() == sorted_.bounds.tolist()
    begin, end = compared.bounds[:2].tolist()
    pairs = (chosen.flatten() == own.start).nonzero().flatten().tolist()
    assert compared.order[begin:end].tolist() == pairs


def test_more_experts_than_one_program_places(device: torch.device) -> None:
    chosen = torch.tensor([[200, 3], [128, 3]], device=device, dtype=torch.int32)
    bounds = sort_pairs(torch.rand(2, 2, device=device), chosen, range(256)).bounds
    assert bounds.shape == (257,)
    assert bounds[[0, 3, 4, 128, 129, 200, 201, 256]].tolist() == [0, 0, 2, 2, 3, 3, 4, 4]
