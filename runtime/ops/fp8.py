"""Weights in fp8 (E4M3: 4 bits of exponent, 3 of mantissa, ±448): one byte each, and a float32 scale per block.

    weight[n, k] = data[n, k] · scale[n // block rows, k // block columns]

Block checkpoints (Qwen3-*-FP8) have blocks of 128 × 128; one scale per tensor becomes one per row, so that matrices of
several scales can be stacked: blocks of 1 × columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPE = torch.float8_e4m3fn
LARGEST = 448.0
BLOCK = 128
TINY = 1e-12  # keeps the scale of a block of zeros from being 0

# How weights in fp8 are multiplied: unpacked to the dtype of x, or with x quantized too, where there are units for it.
Fp8Math = Literal["w8a16", "w8a8"]
FP8_UNITS = (8, 9)  # CUDA compute capability, from Ada on


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """One matrix [N, K] or a stack of them [E, N, K] with scales [(E,) ⌈N / block rows⌉, ⌈K / block columns⌉]."""

    data: Tensor  # float8_e4m3fn
    scale: Tensor  # float32
    block: tuple[int, int]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Fp8Weight:
        """One matrix of a stack."""
        return Fp8Weight(self.data[index], self.scale[index], self.block)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weights themselves: the product is taken in float32, then rounded to `dtype`."""
        rows, columns = self.data.shape[-2:]
        scale = self.scale.repeat_interleave(self.block[0], -2)[..., :rows, :]
        return (self.data.float() * scale.repeat_interleave(self.block[1], -1)[..., :columns]).to(dtype)


Weight = Tensor | Fp8Weight


def fp8_math(capability: tuple[int, int]) -> Fp8Math:
    """W8A8 wherever the card can, at every batch size: were it a matter of the batch, a request's numbers would depend
    on its neighbours."""
    return "w8a8" if capability >= FP8_UNITS else "w8a16"


def quantize(weight: Tensor) -> Fp8Weight:
    """`weight` [(E,) N, K] in blocks of 128 × 128, each scaled so that its largest element is ±448."""
    if weight.dim() == 3:  # one by one: in float32 all of them together might not fit
        parts = [quantize(one) for one in weight]
        data, scale = torch.stack([part.data for part in parts]), torch.stack([part.scale for part in parts])
        return Fp8Weight(data, scale, (BLOCK, BLOCK))
    rows, columns = weight.shape
    blocks = F.pad(weight, (0, -columns % BLOCK, 0, -rows % BLOCK)).float()
    blocks = blocks.view(-(-rows // BLOCK), BLOCK, -(-columns // BLOCK), BLOCK)
    scale = blocks.abs().amax((1, 3)).clamp(min=TINY) / LARGEST
    data = (blocks / scale[:, None, :, None]).to(DTYPE).view(blocks.shape[0] * BLOCK, -1)
    return Fp8Weight(data[:rows, :columns].contiguous(), scale, (BLOCK, BLOCK))


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations x [T, K] as fp8 [T, K] and scales [T, ⌈K / 128⌉]: one per token and 128 columns, so that a token's
    numbers do not depend on the others of its batch."""
    columns = x.shape[1]
    groups = F.pad(x, (0, -columns % BLOCK)).float().view(len(x), -(-columns // BLOCK), BLOCK)
    scale = groups.abs().amax(-1).clamp(min=TINY) / LARGEST
    return (groups / scale[..., None]).to(DTYPE).flatten(1)[:, :columns].contiguous(), scale


def dense(weight: Weight, dtype: torch.dtype) -> Tensor:
    """`weight` unpacked if it is in fp8, else as it is."""
    return weight.dense(dtype) if isinstance(weight, Fp8Weight) else weight
