"""Linear layers in int8 (W8A8): weights with a scale per output channel, activations with a scale per token.

    weight[n, k] ≈ data[n, k] · scale[n]        x[t, k] ≈ q[t, k] · s[t]        both symmetric, within ±127
    y[t, n] = (Σ_k q[t, k] · data[n, k]) · s[t] · scale[n] + bias[n]

The sum is exact in int32 for up to 133,000 inputs. A token's numbers do not depend on the others of its batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.ops.ops import Linear

LARGEST = 127.0


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """One matrix: data [N, K] int8, scale [N] float32."""

    data: Tensor
    scale: Tensor

    def dense(self) -> Tensor:
        """What the numbers stand for [N, K], in float32."""
        return self.data.float() * self.scale[:, None]


def quantize(weight: Tensor) -> Int8Weight:
    """`weight` [N, K], each row scaled so that its largest element is ±127."""
    data, scale = quantize_rows(weight)
    return Int8Weight(data, scale)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, K] as int8 [T, K] and scales [T]. A row that is not finite has the scale NaN, so that this is seen in what
    is made from it."""
    largest = x.abs().amax(-1)
    factor = torch.where(largest > 0, LARGEST / largest, 0)
    q = (x * factor[:, None]).round().nan_to_num(0.0).to(torch.int8)
    return q, torch.where(largest.isfinite(), largest / LARGEST, torch.nan)


def pack_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """A linear layer in int8 from its weight [out, in], by torch's own product of int8 matrices."""
    held = quantize(weight)

    def linear(x: Tensor) -> Tensor:
        q, scale = quantize_rows(x)
        y = torch._int_mm(q, held.data.T).float() * (scale[:, None] * held.scale)
        return y if bias is None else y + bias

    return linear
