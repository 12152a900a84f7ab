"""The ops that a model calls, chosen once at load for a device and dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.ops import reference
from runtime.ops.batch import Batch

Linear = Callable[[Tensor], Tensor]  # [T, in] → [T, out]
RopeWrite = Callable[[Tensor, tuple[Tensor, Tensor] | None, float, Tensor, Tensor, Batch], Tensor]


@dataclass(frozen=True, slots=True)
class Ops:
    """One implementation of each op; signatures and shapes are those of `runtime.ops.reference`."""

    name: str
    pack_linear: Callable[[Tensor, Tensor | None], Linear]  # weight [out, in], bias [out]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    silu_mul: Callable[[Tensor], Tensor]
    rope_write: RopeWrite
    attention: Callable[[Tensor, Tensor, Batch, float], Tensor]
    moe: Callable[[Tensor, Linear, Mapping[int, Linear], int, bool], Tensor]


def pack_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """F.linear with the weight as it is."""

    def linear(x: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    return linear


REFERENCE = Ops(
    name="reference",
    pack_linear=pack_linear,
    rms_norm=reference.rms_norm,
    add_rms_norm=reference.add_rms_norm,
    silu_mul=reference.silu_mul,
    rope_write=reference.rope_write,
    attention=reference.attention,
    moe=reference.moe,
)


def choose(device: torch.device, dtype: torch.dtype) -> Ops:
    """The fastest ops for `device` and `dtype`."""
    if device.type == "cpu" and dtype == torch.float32:
        from runtime.ops.cpu import cpu_ops

        return cpu_ops()
    return REFERENCE
