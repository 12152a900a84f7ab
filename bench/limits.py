"""What this machine could do at best: memory bandwidth and matmul peaks, and the roofline they give."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.narrow import is_narrow
from runtime.model_spec import ModelSpec

FP32, BF16, INT8 = 4, 2, 1  # bytes
EXACT_PARTS = 3  # a float32 is the sum of three bfloat16 (8 of its 24 bits each)
_READ_BYTES = 2**30  # far larger than any cache
_MATMUL_SIZE = 2048
_REPEATS = 15
_ENOUGH_S = 3.0  # a product that has no units of its own may take seconds: then fewer repeats


@dataclass(frozen=True, slots=True)
class Limits:
    """`read_gb_s` in 10⁹ bytes/s, the others in 10⁹ additions or multiplications/s; all cores.

    `bf16_gflop_s` is 0 where the processor has no units for it.
    """

    read_gb_s: float
    fp32_gflop_s: float
    bf16_gflop_s: float
    int8_gflop_s: float


@dataclass(frozen=True, slots=True)
class Form:
    """How an engine keeps a weight and a number of the KV cache (bytes), and the peak of its products (10⁹/s)."""

    weight_bytes: int
    gflop_s: float
    kv_bytes: int = FP32


@dataclass(frozen=True, slots=True)
class Work:
    """What one token costs. Weights and bytes are totals over all layers."""

    block_weights: int  # weights that every token meets
    head_weights: int  # weights that only an output token meets
    kv_numbers: int  # keys and values of one token of context, read by each later step


def form_fp32(limits: Limits, weight_bytes: int) -> Form:
    """fp32 math. Weights that are exactly bfloat16 are kept in 2 bytes; where there are bf16 units, three products of
    theirs give all 24 bits of float32, which can be faster than the fp32 units are."""
    in_parts = limits.bf16_gflop_s / EXACT_PARTS if weight_bytes == BF16 else 0.0
    return Form(weight_bytes, max(limits.fp32_gflop_s, in_parts))


def form_int8(limits: Limits) -> Form:
    """Weights of 8 bits, as if each met an activation once. int8 units are never slower than those for bf16, whatever
    torch's own int8 product makes of them."""
    return Form(INT8, max(limits.int8_gflop_s, limits.bf16_gflop_s, limits.fp32_gflop_s), BF16)


def work_of(spec: ModelSpec) -> Work:
    """A dense decoder: q, k, v, o and the three MLP matrices of each layer, and the output head; and a KV cache."""
    attention = 2 * spec.hidden_size * (spec.q_size + spec.kv_size)
    mlp = 3 * spec.hidden_size * spec.intermediate_size
    return Work(
        block_weights=spec.num_layers * (attention + mlp),
        head_weights=spec.vocab_size * spec.hidden_size,
        kv_numbers=2 * spec.num_layers * spec.kv_size,
    )


def output_limit(work: Work, limits: Limits, form: Form, *, prompt: int, output: int, streams: int) -> float:
    """Output tokens/s that no engine of this form can pass on this machine (roofline: Williams et al., 2009).

    `streams` requests of `prompt` in and `output` out run together; the weights are read once per step for
    all of them, each reads its own KV cache, and the faster of memory and matmul is free. Not counted:
    attention's arithmetic, reading the weights for prompts, tokenizing.
    """
    steps = output - 1  # the first output token comes with the prompt
    weights = (work.block_weights + work.head_weights) * form.weight_bytes
    context = prompt + output / 2
    memory_s = (weights * output + streams * steps * context * work.kv_numbers * form.kv_bytes) / (
        limits.read_gb_s * 1e9
    )
    per_request = 2 * (work.block_weights * (prompt + steps) + work.head_weights * output)
    matmul_s = streams * per_request / (form.gflop_s * 1e9)
    return streams * output / max(memory_s, matmul_s)


def decode_limit_ms(work: Work, limits: Limits, form: Form, *, prompt: int, output: int) -> float:
    """Milliseconds that reading the weights and the KV cache takes for one token of one stream, in the mean."""
    context = (prompt + output / 2) * work.kv_numbers
    read = (work.block_weights + work.head_weights) * form.weight_bytes + context * form.kv_bytes
    return read / (limits.read_gb_s * 1e6)


def measure_limits() -> Limits:
    """Takes a few seconds and all cores: run it while nothing else does."""
    import torch

    data = torch.ones(_READ_BYTES // FP32)
    read_s = _best_seconds(lambda: torch.sum(data))
    left, right = torch.rand(_MATMUL_SIZE, _MATMUL_SIZE), torch.rand(_MATMUL_SIZE, _MATMUL_SIZE)
    has_bf16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and not is_narrow()
    left16, right16 = left.bfloat16(), right.bfloat16()
    left8, right8 = (left * 127).to(torch.int8), (right * 127).to(torch.int8)
    return Limits(
        read_gb_s=round(_READ_BYTES / read_s / 1e9, 1),
        fp32_gflop_s=_peak(lambda: torch.mm(left, right)),
        bf16_gflop_s=_peak(lambda: torch.mm(left16, right16)) if has_bf16 else 0.0,
        int8_gflop_s=_peak(lambda: torch._int_mm(left8, right8)),
    )


def exact_weight_bytes(model: Path) -> int:
    """Bytes of a weight in memory for fp32 math, as the engine decides it (runtime.ops.cpu): 2 for weights that are
    bfloat16, where its kernels can be built; else 4."""
    from runtime.ops.cpu_kernels import load_library

    config = json.loads((model / "config.json").read_text())
    dtype = config.get("dtype") or config.get("torch_dtype")
    return BF16 if dtype == "bfloat16" and load_library() is not None else FP32


def _peak(product: Callable[[], object]) -> float:
    return round(2 * _MATMUL_SIZE**3 / _best_seconds(product) / 1e9, 1)


def _best_seconds(work: Callable[[], object]) -> float:
    """A limit is what the machine can do when nothing disturbs it: the shortest time, not the middle one."""
    work()
    times: list[float] = []
    while len(times) < _REPEATS and sum(times) < _ENOUGH_S:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    found = {"limits": dataclasses.asdict(measure_limits()), "weight_bytes": exact_weight_bytes(Path(sys.argv[1]))}
    print(json.dumps(found))
