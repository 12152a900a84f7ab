"""Linear layers in int8: weights with a scale per output channel, activations with a scale per token, in two parts.

    weight[n, k] ≈ data[n, k] · scale[n]        x[t, k] ≈ (q[t, k] + f[t, k] / 254) · s[t]        all within ±127
    y[t, n] = (Σ_k q[t, k] · data[n, k] + Σ_k f[t, k] · data[n, k] / 254) · s[t] · scale[n] + bias[n]

The fine part f makes 16 bits of an activation: a weight is read once for both, and what is lost is what its own 8 bits
lose, about half of what 8 bits of both would (docs/benchmarks). Sums are exact in int32 for up to 133,000 inputs. A
token's numbers do not depend on the others of its batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.ops.ops import Linear

LARGEST = 127.0
FINE = 254.0  # fine steps in a coarse one


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """One matrix: data [N, K] int8, scale [N] float32."""

    data: Tensor
    scale: Tensor


def quantize(weight: Tensor) -> Int8Weight:
    """`weight` [N, K], each row scaled so that its largest element is ±127."""
    data, _, scale = quantize_rows(weight)
    return Int8Weight(data, scale)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [T, K] as coarse and fine parts in int8 [T, K] and scales [T]. A row that is not finite has the scale NaN, so
    that this is seen in what is made from it."""
    largest = x.abs().amax(-1)
    factor = torch.where(largest > 0, LARGEST / largest, 0)
    value = (x * factor[:, None]).nan_to_num(0.0)
    coarse, scale = value.round(), torch.where(largest.isfinite(), largest / LARGEST, torch.nan)
    return coarse.to(torch.int8), ((value - coarse) * FINE).round().to(torch.int8), scale


def pack_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """A linear layer in int8 from its weight [out, in], by torch's own product of int8 matrices."""
    held = quantize(weight)

    def linear(x: Tensor) -> Tensor:
        coarse, fine, scale = quantize_rows(x)
        sums = torch._int_mm(coarse, held.data.T).float() + torch._int_mm(fine, held.data.T).float() / FINE
        y = sums * (scale[:, None] * held.scale)
        return y if bias is None else y + bias

    return linear
