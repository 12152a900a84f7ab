"""What this machine could do at best: memory bandwidth and fp32 matmul peak, and the roofline they give."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from runtime.model_spec import ModelSpec

FP32 = 4  # bytes
_READ_BYTES = 2**30  # far larger than any cache
_MATMUL_SIZE = 2048
_REPEATS = 15


@dataclass(frozen=True, slots=True)
class Limits:
    """`read_gb_s` in 10⁹ bytes/s, `matmul_gflop_s` in 10⁹ additions or multiplications/s; all cores."""

    read_gb_s: float
    matmul_gflop_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """What one token costs. Weights and bytes are totals over all layers."""

    block_weights: int  # weights that every token meets
    head_weights: int  # weights that only an output token meets
    kv_bytes: int  # bytes that one token of context adds to each later step


def work_of(spec: ModelSpec) -> Work:
    """A dense decoder in fp32: q, k, v, o and the three MLP matrices of each layer, and the output head."""
    attention = 2 * spec.hidden_size * (spec.q_size + spec.kv_size)
    mlp = 3 * spec.hidden_size * spec.intermediate_size
    return Work(
        block_weights=spec.num_layers * (attention + mlp),
        head_weights=spec.vocab_size * spec.hidden_size,
        kv_bytes=2 * spec.num_layers * spec.kv_size * FP32,
    )


def output_limit(work: Work, limits: Limits, *, prompt: int, output: int, streams: int) -> float:
    """Output tokens/s that no fp32 engine can pass on this machine (roofline: Williams et al., 2009).

    `streams` requests of `prompt` in and `output` out run together; the weights are read once per step for
    all of them, each reads its own KV cache, and the faster of memory and matmul is free. Not counted:
    attention's arithmetic, reading the weights for prompts, tokenizing.
    """
    steps = output - 1  # the first output token comes with the prompt
    weights = (work.block_weights + work.head_weights) * FP32
    context = prompt + output / 2
    memory_s = (weights * output + streams * steps * context * work.kv_bytes) / (limits.read_gb_s * 1e9)
    per_request = 2 * (work.block_weights * (prompt + steps) + work.head_weights * output)
    matmul_s = streams * per_request / (limits.matmul_gflop_s * 1e9)
    return streams * output / max(memory_s, matmul_s)


def measure_limits() -> Limits:
    """Takes a few seconds and all cores: run it while nothing else does."""
    import torch

    data = torch.ones(_READ_BYTES // FP32)
    read_s = _best_seconds(lambda: torch.sum(data))
    left, right = torch.rand(_MATMUL_SIZE, _MATMUL_SIZE), torch.rand(_MATMUL_SIZE, _MATMUL_SIZE)
    matmul_s = _best_seconds(lambda: torch.mm(left, right))
    return Limits(
        read_gb_s=round(_READ_BYTES / read_s / 1e9, 1),
        matmul_gflop_s=round(2 * _MATMUL_SIZE**3 / matmul_s / 1e9, 1),
    )


def _best_seconds(work: Callable[[], object]) -> float:
    """A limit is what the machine can do when nothing disturbs it: the shortest time, not the middle one."""
    work()
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(measure_limits())))
