"""Which expert computes which token, in Triton: one launch chooses the experts, one sorts the pairs by them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

RANKED = 2048  # pairs up to which comparing each with each beats a sort
MINE, OTHERS = 128, 64  # that one program compares at a time


@dataclass(frozen=True, slots=True)
class Routing:
    """Pairs (token · top_k + choice) by expert: those of expert e are order[bounds[e]:bounds[e + 1]].

    What is not between bounds[0] and bounds[E] belongs to experts of other ranks.
    """

    order: Tensor  # [P] int32
    bounds: Tensor  # [E + 1] int32
    weights: Tensor  # [T, top_k]


def route(logits: Tensor, top_k: int, norm_topk: bool) -> tuple[Tensor, Tensor]:
    """`runtime.ops.reference.route`."""
    logits = logits.contiguous()
    tokens, experts = logits.shape
    weights, chosen = logits.new_empty(tokens, top_k), logits.new_empty(tokens, top_k, dtype=torch.int32)
    if tokens:
        _route_kernel[(tokens,)](
            logits, weights, chosen, EXPERTS=experts, TOP_K=top_k, NORMED=norm_topk,
            TILE=triton.next_power_of_2(experts), SLOTS=triton.next_power_of_2(top_k), num_warps=1,
        )  # fmt: skip
    return weights, chosen


def sort_pairs(weights: Tensor, chosen: Tensor, experts: range) -> Routing:
    """For the `experts` that are here, pairs of one expert in the order of tokens. The host is not asked."""
    weights, chosen = weights.contiguous(), chosen.contiguous()
    pairs, count = chosen.numel(), len(experts)
    if pairs > RANKED:
        numbers, order = chosen.flatten().sort(stable=True)
        edges = torch.arange(experts.start, experts.stop + 1, device=chosen.device, dtype=chosen.dtype)
        return Routing(order.int(), torch.searchsorted(numbers, edges, out_int32=True), weights)
    order, bounds = (chosen.new_empty(size, dtype=torch.int32) for size in (pairs, count + 1))
    tiles = triton.cdiv(pairs, MINE)
    _rank_kernel[(tiles + triton.cdiv(count + 1, MINE),)](
        chosen, order, bounds, pairs, tiles, FIRST=experts.start, EXPERTS=count, MINE=MINE, OTHERS=OTHERS, num_warps=4
    )
    return Routing(order, bounds, weights)


@triton.jit
def _route_kernel(
    logits: tl.tensor, weights: tl.tensor, chosen: tl.tensor, EXPERTS: tl.constexpr, TOP_K: tl.constexpr,
    NORMED: tl.constexpr, TILE: tl.constexpr, SLOTS: tl.constexpr,
) -> None:  # fmt: skip
    """One program: one token."""
    token, expert, slot = tl.program_id(0), tl.arange(0, TILE), tl.arange(0, SLOTS)
    value = tl.load(logits + token * EXPERTS + expert, mask=expert < EXPERTS, other=-float("inf")).to(tl.float32)
    share = tl.exp(value - tl.max(value, 0))
    share = tl.where(expert < EXPERTS, share / tl.sum(share, 0), -1.0)
    kept = tl.zeros([SLOTS], tl.float32)
    numbers = tl.zeros([SLOTS], tl.int32)
    for index in range(TOP_K):
        best = tl.minimum(tl.argmax(share, 0), EXPERTS - 1)  # among NaN there is no best: any expert will do
        kept = tl.where(slot == index, tl.max(share, 0), kept)
        numbers = tl.where(slot == index, best, numbers)
        share = tl.where(expert == best, -1.0, share)
    if NORMED:
        kept = kept / tl.sum(kept, 0)
    at = token * TOP_K + slot
    tl.store(weights + at, kept.to(weights.dtype.element_ty), mask=slot < TOP_K)
    tl.store(chosen + at, numbers, mask=slot < TOP_K)


@triton.jit(do_not_specialize=["pairs", "tiles"])
def _rank_kernel(
    chosen: tl.tensor, order: tl.tensor, bounds: tl.tensor, pairs: tl.tensor, tiles: tl.tensor,
    FIRST: tl.constexpr, EXPERTS: tl.constexpr, MINE: tl.constexpr, OTHERS: tl.constexpr,
) -> None:  # fmt: skip
    """One program: the places of some pairs, which is how many pairs come before each; after `tiles`, the places where
    some experts begin."""
    index = tl.program_id(0) * MINE + tl.arange(0, MINE)
    number = index - tiles * MINE
    is_pair = index < tiles * MINE
    expert = tl.where(is_pair, tl.load(chosen + index, mask=index < pairs, other=0).to(tl.int32), FIRST + number)
    place = tl.zeros([MINE], tl.int32)
    for first in range(0, pairs, OTHERS):
        other = first + tl.arange(0, OTHERS)
        its = tl.load(chosen + other, mask=other < pairs, other=2147483647).to(tl.int32)[None, :]
        earlier = is_pair[:, None] & (other[None, :] < index[:, None])
        before = (its < expert[:, None]) | ((its == expert[:, None]) & earlier)
        place += tl.sum(before.to(tl.int32), 1)
    tl.store(order + place, index, mask=index < pairs)
    tl.store(bounds + number, place, mask=(number >= 0) & (number <= EXPERTS))
