"""The ops that a model calls, chosen once at load for a device and dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.ops import reference
from runtime.ops.batch import Batch
from runtime.ops.fp8 import Weight, dense, fp8_math, quantize

Linear = Callable[[Tensor], Tensor]  # [T, in] → [T, out]
Mlp = Callable[[Tensor], Tensor]  # [T, H] → [T, H]
PackLinear = Callable[[Weight, Tensor | None], Linear]  # weight [out, in], bias [out]
Experts = Callable[[Tensor, Tensor, Tensor], Tensor]  # x [T, H], weights and chosen [T, top_k] (`route`) → [T, H]
PackExperts = Callable[[Weight, Weight, int], Experts]  # gate_up [E, 2·I, H], down [E, H, I], number of the first one
Block = Callable[[Tensor, Tensor, Tensor, Batch], tuple[Tensor, Tensor]]  # x, residual, cache ► the next x, residual
RopeWrite = Callable[[Tensor, tuple[Tensor, Tensor] | None, float, Tensor, Tensor, Batch], Tensor]


@dataclass(frozen=True, slots=True)
class DenseMlp:
    """down(silu(gate(x)) · up(x))"""

    gate_up: Linear
    down: Linear
    silu_mul: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.silu_mul(self.gate_up(x)))


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one layer of a decoder, ready to call. N and K count the heads of this rank."""

    input_norm: Tensor  # [H]
    qkv: Linear  # H → (N + 2K)·D
    qk_norms: tuple[Tensor, Tensor] | None  # [D], [D]
    o: Linear  # N·D → H
    mlp_norm: Tensor  # [H]
    mlp: Mlp


def not_fused(layer: Layer, next_norm: Tensor, rope_table: Tensor, eps: float, scale: float) -> Block | None:
    """The layer and the norm behind it in one call, where that is faster; here, they run op by op.

    What is returned overwrites its x and residual.
    """
    return None


@dataclass(frozen=True, slots=True)
class Ops:
    """One implementation of each op; signatures and shapes are those of `runtime.ops.reference`.

    `hold` is what becomes of a matrix of the layers that the checkpoint has unquantized, before it is packed.
    `recordable`: no launch depends on what lies on the device, so that a step of decodes can be a CUDA graph.
    `cache_dtype`: of the KV cache, where it is not that of the activations.
    """

    name: str
    hold: Callable[[Tensor], Weight]
    pack_linear: PackLinear
    pack_router: PackLinear  # a linear layer that is never quantized
    pack_experts: PackExperts
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    silu_mul: Callable[[Tensor], Tensor]
    rope_write: RopeWrite
    attention: Callable[[Tensor, Tensor, Batch, float], Tensor]
    route: Callable[[Tensor, int, bool], tuple[Tensor, Tensor]]
    recordable: bool = False
    cache_dtype: torch.dtype | None = None
    fuse: Callable[[Layer, Tensor, Tensor, float, float], Block | None] = not_fused


def in_bfloat16(weight: Tensor) -> Tensor | None:
    """The numbers of `weight` (float32) in half the memory, as most checkpoints have them; None if that loses any."""
    halves = weight.bfloat16()
    return halves if torch.equal(halves.float(), weight) else None


def as_is(weight: Tensor) -> Weight:
    return weight


def pack_linear(weight: Weight, bias: Tensor | None) -> Linear:
    """F.linear with the weight as it is; one in fp8 is unpacked at each call."""

    def linear(x: Tensor) -> Tensor:
        return F.linear(x, dense(weight, x.dtype), bias)

    return linear


def unpacked(pack: Callable[[Tensor, Tensor | None], Linear], dtype: torch.dtype) -> PackLinear:
    """`pack` for weights in fp8 too, which are unpacked once, at load."""
    return lambda weight, bias: pack(dense(weight, dtype), bias)


def one_by_one(pack: PackLinear, silu_mul: Callable[[Tensor], Tensor]) -> PackExperts:
    """Experts as pairs of linear layers, run one after another."""

    def expert(gate_up: Linear, down: Linear) -> Linear:
        return lambda x: down(silu_mul(gate_up(x)))

    def pack_experts(gate_up: Weight, down: Weight, first: int) -> Experts:
        experts = {first + i: expert(pack(gate_up[i], None), pack(down[i], None)) for i in range(len(down))}
        return lambda x, weights, chosen: reference.moe(x, weights, chosen, experts)

    return pack_experts


REFERENCE = Ops(
    name="reference",
    hold=as_is,
    pack_linear=pack_linear,
    pack_router=pack_linear,
    pack_experts=one_by_one(pack_linear, reference.silu_mul),
    rms_norm=reference.rms_norm,
    add_rms_norm=reference.add_rms_norm,
    silu_mul=reference.silu_mul,
    rope_write=reference.rope_write,
    attention=reference.attention,
    route=reference.route,
)


def choose(device: torch.device, dtype: torch.dtype, quantization: str | None = None) -> Ops:
    """The fastest ops for `device` and `dtype`.

    `quantization` "int8" is for CPUs (runtime.ops.int8). "fp8" keeps the matrices of the layers in fp8; without it
    those that are stored so are unpacked.
    """
    if device.type == "cpu" and dtype == torch.float32:
        from runtime.ops.cpu import cpu_ops

        return cpu_ops(quantization)
    if quantization == "fp8":
        plain = replace(REFERENCE, hold=quantize)
    else:
        pack = unpacked(pack_linear, dtype)
        plain = replace(REFERENCE, pack_linear=pack, pack_experts=one_by_one(pack, REFERENCE.silu_mul))
    if device.type == "cuda":
        from runtime.ops.gpu import gpu_ops

        math = fp8_math(torch.cuda.get_device_capability(device)) if quantization == "fp8" else None
        return gpu_ops(plain, dtype, math)
    return plain
