"""How long a step of the engine takes, from a model's shape and a machine's rates: pure arithmetic.

    step time = max(bytes read / bandwidth, FLOPs / peak) + reductions + overhead

The first term is the roofline (Williams et al., 2009): weights are read once per step for all requests, each request
reads its own KV cache, and the faster of memory and arithmetic is free; `Rates.blend` softens the maximum for machines
where it is not quite. Bandwidth and peak are what a machine reaches: those of its data sheet times an efficiency, or
fitted to measured steps (`fit`). Reductions are those of tensor parallelism (`Link`). What a server gives follows from
the steps that the scheduler makes of a load (`bench.step_serving`).

    python -m bench.step_model fit       measures steps on this machine's CPU, fits, compares with measured servers
    python -m bench.step_model tables    writes the tables of docs/scaling.md
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime import sizing
from runtime.model_spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Widths:
    """Bytes per number: of the layers' matrices, of the head, and of KV cache and activations."""

    layers: float
    head: float
    cache: float


BF16 = Widths(2, 2, 2)  # or float16
FP8 = Widths(sizing.LINEAR_BYTES["fp8"], 2, 2)
CPU_FP32 = Widths(4, 4, 4)
CPU_BF16 = Widths(2, 2, 4)  # float32 math over weights that are kept in bfloat16
CPU_INT8 = Widths(1, 1, 2)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step computes: `tokens` in all, `samples` that get logits, `reads` tokens of KV cache that all requests
    read together, `pairs` of a query and a key."""

    tokens: int
    samples: int
    reads: int
    pairs: int

    def __add__(self, other: Step) -> Step:
        return Step(
            self.tokens + other.tokens,
            self.samples + other.samples,
            self.reads + other.reads,
            self.pairs + other.pairs,
        )


NOTHING = Step(0, 0, 0, 0)


def row(start: int, count: int, *, samples: bool = True, requests: int = 1) -> Step:
    """`requests` alike, each with tokens [start, start + count) in the step; token i attends to i + 1 others."""
    pairs = count * start + count * (count + 1) // 2
    return Step(requests * count, requests * samples, requests * (start + count), requests * pairs)


@dataclass(frozen=True, slots=True)
class Share:
    """What a step costs one of `ranks` GPUs (or the CPU), which hold the model together.

    Bytes and FLOPs, per step, token, sample or pair as `Step` counts them. `expert_bytes` is one expert in all layers.
    """

    ranks: int
    layer_bytes: float
    head_bytes: float
    kv_bytes: float
    token_flops: float
    sample_flops: float
    pair_flops: float
    experts: int
    top_k: int
    expert_bytes: float
    reductions: int
    token_message: float  # bytes of one token in each all-reduce
    sample_message: float  # bytes of one sample's logits, gathered on rank 0

    def bytes_read(self, step: Step) -> float:
        """Weights once, experts that somebody chose, the head where somebody samples, the KV cache read and written."""
        head = self.head_bytes if step.samples else 0.0
        chosen = distinct_experts(self.experts, self.top_k, step.tokens) * self.expert_bytes
        return self.layer_bytes + chosen + head + (step.reads + step.tokens) * self.kv_bytes

    def flops(self, step: Step) -> float:
        return step.tokens * self.token_flops + step.samples * self.sample_flops + step.pairs * self.pair_flops


def share_of(spec: ModelSpec, widths: Widths, ranks: int = 1) -> Share:
    """The cut is Megatron-LM's (arXiv 1909.08053), as the engine makes it: all matrices shared out, k and v replicated
    once there are more ranks than KV heads, router and norms whole. A matrix product of m×k by k×n is 2·m·k·n FLOPs;
    attention is two products of head_dim per pair and head."""
    shared, kv = sizing.attention_elements(spec)
    attention = (shared + kv * max(1.0, ranks / spec.num_kv_heads)) / ranks
    mlp, router, moe = sizing.mlp_elements(spec) / ranks, sizing.router_elements(spec), spec.moe
    active = mlp * moe.top_k / moe.num_experts if moe else mlp
    head = spec.vocab_size * spec.hidden_size / ranks
    layers = spec.num_layers
    always = attention + (0.0 if moe else mlp)
    return Share(
        ranks=ranks,
        layer_bytes=layers * (always * widths.layers + router * widths.cache)
        + sizing.norm_elements(spec) * widths.cache,
        head_bytes=head * widths.head,
        kv_bytes=2 * layers * max(1.0, spec.num_kv_heads / ranks) * spec.head_dim * widths.cache,
        token_flops=2 * layers * (attention + active + router),
        sample_flops=2 * head,
        pair_flops=4 * layers * spec.q_size / ranks,
        experts=moe.num_experts if moe else 0,
        top_k=moe.top_k if moe else 0,
        expert_bytes=layers * mlp / moe.num_experts * widths.layers if moe else 0.0,
        reductions=2 * layers + 1,  # after attention and MLP of each layer, and one after the embedding
        token_message=spec.hidden_size * widths.cache,
        sample_message=head * ranks / spec.hidden_size * widths.cache,
    )


def distinct_experts(experts: int, top_k: int, tokens: int) -> float:
    """Experts of a layer that one of T tokens at least chooses, if all are chosen alike: E·(1 − (1 − k/E)^T)."""
    return experts * (1 - (1 - top_k / experts) ** tokens) if experts else 0.0


@dataclass(frozen=True, slots=True)
class Link:
    """How the GPUs of a machine talk. `bus_bytes_per_s` is NCCL's bus bandwidth (nccl-tests, PERFORMANCE.md);
    `latency_s` is that of 2 GPUs, `hop_s` that of each further hop of the ring."""

    name: str
    bus_bytes_per_s: float
    latency_s: float
    hop_s: float

    def all_reduce_s(self, size: float, ranks: int) -> float:
        """A ring all-reduce of `size` bytes: 2(n − 1) hops that move 2(n − 1)/n of it (Thakur et al., 2005)."""
        if ranks == 1:
            return 0.0
        hops = 2 * (ranks - 1)
        return self.latency_s + (hops - 2) * self.hop_s + hops / ranks * size / self.bus_bytes_per_s

    def gather_s(self, size: float, ranks: int) -> float:
        """`size` bytes, shared out, brought together on one rank."""
        return 0.0 if ranks == 1 else self.latency_s + (ranks - 1) / ranks * size / self.bus_bytes_per_s


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine reaches. `step_s`: what a step costs whatever is in it, in seconds.

    `blend` is p in (memory^p + math^p)^(1/p): infinity is the roofline's maximum, 1 the sum of both, which is what a
    machine takes that never does one while it waits for the other.
    """

    bytes_per_s: float
    flops_per_s: float
    step_s: float
    blend: float = math.inf


@dataclass(frozen=True, slots=True)
class Parts:
    """The seconds of one step, by cause."""

    memory_s: float
    math_s: float
    reduce_s: float
    overhead_s: float
    blend: float = math.inf

    @property
    def seconds(self) -> float:
        return blended(self.memory_s, self.math_s, self.blend) + self.reduce_s + self.overhead_s

    @property
    def is_memory_bound(self) -> bool:
        return self.memory_s >= self.math_s


def parts_of(share: Share, step: Step, rates: Rates, link: Link | None = None) -> Parts:
    """Raises ValueError for several ranks without a link."""
    reduce_s = 0.0
    if share.ranks > 1:
        if link is None:
            raise ValueError(f"{share.ranks} ranks need a link")
        reduce_s = share.reductions * link.all_reduce_s(step.tokens * share.token_message, share.ranks)
        reduce_s += link.gather_s(step.samples * share.sample_message, share.ranks)
    return Parts(
        memory_s=share.bytes_read(step) / rates.bytes_per_s,
        math_s=share.flops(step) / rates.flops_per_s,
        reduce_s=reduce_s,
        overhead_s=rates.step_s,
        blend=rates.blend,
    )


def blended(one: float, other: float, exponent: float) -> float:
    """(one^p + other^p)^(1/p), which for p = infinity is their maximum."""
    high, low = max(one, other), min(one, other)
    if math.isinf(exponent) or high == 0:
        return high
    return float(high * (1 + (low / high) ** exponent) ** (1 / exponent))


# ---- from measured steps to rates ----

BLENDS = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0, math.inf)
_ROUNDS = 100


@dataclass(frozen=True, slots=True)
class Measured:
    """One step and the seconds that it took."""

    step: Step
    seconds: float


def fit(share: Share, measured: Sequence[Measured]) -> Rates:
    """Least squares of (predicted − measured) / measured over bandwidth, peak and overhead, for each of BLENDS.

    For a given p the roofline term is, at the rates of the round before, a weighted sum of memory and math time
    (Euler's theorem on homogeneous functions), so that each round is a linear problem. Raises ValueError where the
    steps do not tell memory from arithmetic, or no positive rates fit them.
    """
    if share.ranks != 1 or len(measured) < 3:
        raise ValueError("a fit needs three steps or more of an engine with one rank")
    bytes_read = np.array([share.bytes_read(one.step) for one in measured])
    flops = np.array([share.flops(one.step) for one in measured])
    seconds = np.array([one.seconds for one in measured])
    causes = np.stack([bytes_read, flops, np.ones_like(seconds)])
    if np.linalg.matrix_rank(causes / causes.max(axis=1, keepdims=True)) < len(causes):
        raise ValueError("the steps do not tell memory from arithmetic: measure decodes and prefills")
    found = [_fit_blend(bytes_read, flops, seconds, blend) for blend in BLENDS]
    usable = [rates for rates in found if rates is not None]
    if not usable:
        raise ValueError("no positive bandwidth and peak fit these steps: measure again on a quieter machine")
    return min(usable, key=lambda rates: squared_error(share, measured, rates))


def squared_error(share: Share, measured: Sequence[Measured], rates: Rates) -> float:
    """The mean square of (predicted − measured) / measured."""
    errors = [parts_of(share, one.step, rates).seconds / one.seconds - 1 for one in measured]
    return sum(error**2 for error in errors) / len(errors)


Vector = np.ndarray[tuple[int], np.dtype[np.float64]]


def _fit_blend(bytes_read: Vector, flops: Vector, seconds: Vector, blend: float) -> Rates | None:
    per_byte, per_flop, overhead = float(min(seconds / bytes_read)), float(min(seconds / flops)), 0.0
    for _ in range(_ROUNDS):
        memory, arithmetic = bytes_read * per_byte, flops * per_flop
        if math.isinf(blend):
            weights = np.where(memory >= arithmetic, 1.0, 0.0), np.where(memory >= arithmetic, 0.0, 1.0)
        else:
            top = np.maximum(memory, arithmetic)
            both = top * ((memory / top) ** blend + (arithmetic / top) ** blend) ** (1 / blend)
            weights = (memory / both) ** (blend - 1), (arithmetic / both) ** (blend - 1)
        terms = np.stack([weights[0] * bytes_read, weights[1] * flops, np.ones_like(seconds)]) / seconds
        solved = _least_squares(terms)
        if solved is None:
            return None
        # Half a step each round: the weights of a maximum jump.
        per_byte, per_flop = (per_byte + solved[0]) / 2, (per_flop + solved[1]) / 2
        overhead = solved[2]
    return Rates(1 / per_byte, 1 / per_flop, overhead, blend)


def _least_squares(terms: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> tuple[float, float, float] | None:
    """x with terms'·x nearest to ones: no overhead rather than a negative one; None where a rate is not positive."""
    scale = np.abs(terms).max(axis=1, keepdims=True)
    if not scale.all():
        return None
    scaled = (terms / scale).T
    ones = np.ones(len(scaled))
    x = np.linalg.lstsq(scaled, ones, rcond=None)[0]
    if x[2] < 0:
        x = np.append(np.linalg.lstsq(scaled[:, :2], ones, rcond=None)[0], 0.0)
    if x[0] <= 0 or x[1] <= 0:
        return None
    per_byte, per_flop, overhead = (x / scale[:, 0]).tolist()
    return per_byte, per_flop, overhead


def main(words: list[str]) -> int:
    """What runs, and what is written, is in the modules that are imported here."""
    if words[:1] == ["fit"]:
        from bench.step_fit import main as fit_main

        return fit_main(words[1:])
    if words == ["tables"]:
        from bench.step_tables import write_page

        write_page()
        return 0
    print("usage: python -m bench.step_model fit [--help] | tables", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
