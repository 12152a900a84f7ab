"""x · weightᵀ in Triton for what cuBLAS does not have: weights in fp8, and one matrix per expert.

One kernel. A program computes one tile of the output and reads each byte of its weights once. The weights are

    dense     as x is
    w8a16     fp8, unpacked in registers from their bits, which any GPU can do: x stays as it is
    w8a8      fp8, and x is quantized to fp8 per token and 128 columns, for tensor cores that multiply fp8 (8.9 on)

With experts, the (token, choice) pairs are sorted by expert, and a tile holds pairs of one expert only. Nothing is
padded in memory, and the host knows only the largest number of tiles, so that a step can be captured in a CUDA graph:

    pairs by expert    |e0 e0 e0|e2|e3 e3 e3 e3 e3|        bounds = 0 3 3 4 9
    tiles of 4 rows    |0       |1 |2          |3 |        of at most P // 4 + min(E, P); the rest return at once
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.ops.fp8 import BLOCK, DTYPE, LARGEST, TINY, Fp8Math, Fp8Weight, Weight
from runtime.ops.ops import Experts, Linear, PackExperts, PackLinear
from runtime.ops.triton_routing import Routing, sort_pairs

Format = Fp8Math | Literal["dense"]
GROUPS = 16  # of 128 columns that one program quantizes
QUANTIZED_INSIDE = 32  # rows per expert up to which the product itself quantizes x: again in each program, but at once
WHOLE = 2**30  # columns of a block where a row has one scale: the same kernel for matrices of every width
L2_ROWS = 8  # tiles of rows that run side by side, so that they find their weights in the cache


def linears(plain: PackLinear, fp8: Fp8Math) -> PackLinear:
    """Linear layers: `plain`, or this kernel for weights in fp8."""

    def pack_linear(weight: Weight, bias: Tensor | None) -> Linear:
        if not isinstance(weight, Fp8Weight):
            return plain(weight, bias)
        matmul = Matmul(weight, fp8)
        return lambda x: matmul.linear(x, bias)

    return pack_linear


def experts(fp8: Format) -> PackExperts:
    """Experts as two runs of this kernel: gate and up with their product, then down with the sum."""

    def pack_experts(gate_up: Weight, down: Weight, first: int) -> Experts:
        wide, narrow = Matmul(gate_up, fp8), Matmul(down, fp8)
        numbers = range(first, first + len(down))

        def mix(x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
            routing = sort_pairs(weights, chosen, numbers)
            return narrow.mixed(wide.gated(x, routing), routing)

        return mix

    return pack_experts


@dataclass(frozen=True, slots=True)
class Matmul:
    """`weight` [N, K], or one for each expert [E, N, K]; fp8 in the given format, everything else dense."""

    weight: Weight
    fp8: Format

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [T, K] → [T, N]."""
        rows, columns = x.shape[0], self._data.shape[0]
        return self._run(x, x.new_empty(rows, columns), bias=bias)

    def gated(self, x: Tensor, routing: Routing) -> Tensor:
        """x [T, K] → silu(gate) · up [P, N / 2] for each pair, in the order of `routing`."""
        rows, columns = routing.order.shape[0], self._data.shape[1] // 2
        return self._run(x, x.new_empty(rows, columns), routing=routing, gated=True)

    def mixed(self, x: Tensor, routing: Routing) -> Tensor:
        """x [P, K] in the order of `routing` → [T, N]: each token's experts, weighted and summed."""
        shape = (*routing.weights.shape, self._data.shape[1])
        return self._run(x, x.new_zeros(shape), routing=routing).sum(1)

    @property
    def _data(self) -> Tensor:
        return self.weight.data if isinstance(self.weight, Fp8Weight) else self.weight

    def _run(
        self, x: Tensor, out: Tensor, *, bias: Tensor | None = None, routing: Routing | None = None, gated: bool = False
    ) -> Tensor:
        rows = routing.order.shape[0] if routing else x.shape[0]
        if rows == 0:
            return out
        experts = self._data.shape[0] if routing else 1
        kind: Format = "dense"
        block, data, x = (1, 1), self._data, x.contiguous()
        scale = quantized = x_scale = x
        if isinstance(self.weight, Fp8Weight):
            scale, block, kind = self.weight.scale, self.weight.block, self.fp8
            if kind == "w8a16":
                data = data.view(torch.uint8)
            elif rows > QUANTIZED_INSIDE * experts:
                quantized, x_scale = quantize_rows(x)
        tile = _tile(rows / experts, 1 if kind == "w8a8" else x.element_size(), kind, gated)
        tiles = rows // tile.rows + min(experts, rows) if routing else triton.cdiv(rows, tile.rows)
        columns = out.shape[-1]
        _matmul_kernel[(tiles * triton.cdiv(columns, tile.columns),)](
            quantized, x_scale, data, scale, x if bias is None else bias,
            routing.order if routing else x, routing.bounds if routing else x, routing.weights if routing else x,
            out, rows, tiles, columns, data.shape[-1], scale.shape[-1],
            EXPERTS=experts, TOP_K=routing.weights.shape[1] if routing else 1, SCALE_ROWS=block[0],
            SCALE_COLUMNS=block[1] if scale.shape[-1] > 1 else WHOLE, LARGEST=LARGEST, TINY=TINY, FORMAT=kind,
            QUANTIZE=kind == "w8a8" and quantized is x, GROUPED=routing is not None, GATED=gated,
            BIASED=bias is not None, TILE_EXPERTS=triton.next_power_of_2(max(experts, 2)), TILE_ROWS=tile.rows,
            TILE_COLUMNS=tile.columns, TILE_DEPTH=tile.depth, SIDE_BY_SIDE=L2_ROWS,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        return out


class Tile(NamedTuple):
    """What one program computes, rows · columns, `depth` products at a time."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int  # of memory reads under way


def _tile(rows: float, width: int, kind: Format, gated: bool) -> Tile:
    """For about `rows` rows per expert, of `width` bytes an element.

    Few rows: small tiles, so that all multiprocessors read weights. Many: what fits 96 KiB of shared memory, which
    every card has. No deeper than a block of scales.
    """
    deep, deeper = 128 // width, min(256 // width, BLOCK)
    if rows <= 16:
        return Tile(16, 32, deeper, 4, 4 if kind == "dense" else 6)
    if rows <= QUANTIZED_INSIDE:
        return Tile(32, 64, deeper, 4, 3)
    columns = 64 if gated else 128
    return Tile(64, columns, deep, 4, 3) if rows <= 64 else Tile(128, columns, deep, 8, 3)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """`runtime.ops.fp8.quantize_rows`."""
    rows, columns = x.shape
    groups = triton.cdiv(columns, BLOCK)
    data, scale = x.new_empty(rows, columns, dtype=DTYPE), x.new_empty(rows, groups, dtype=torch.float32)
    _quantize_kernel[(rows, triton.cdiv(groups, GROUPS))](
        x, data, scale, columns, groups, WIDTH=BLOCK, GROUPS=GROUPS, LARGEST=LARGEST, TINY=TINY, num_warps=4
    )
    return data, scale


@triton.jit
def _quantized(x: tl.tensor, LARGEST: tl.constexpr, TINY: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """x [rows, 128] in fp8, and the scale of each row."""
    value = x.to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), 1), TINY) / LARGEST
    return (value / scale[:, None]).to(tl.float8e4nv), scale


@triton.jit
def _quantize_kernel(
    x: tl.tensor, data: tl.tensor, scale: tl.tensor, columns: tl.tensor, groups: tl.tensor,
    WIDTH: tl.constexpr, GROUPS: tl.constexpr, LARGEST: tl.constexpr, TINY: tl.constexpr,
) -> None:  # fmt: skip
    """One program: some groups of columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    column = group[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    value = tl.load(x + row * columns + column, mask=column < columns, other=0.0)
    scaled, step = _quantized(value, LARGEST, TINY)
    tl.store(scale + row * groups + group, step, mask=group < groups)
    tl.store(data + row * columns + column, scaled, mask=column < columns)


@triton.jit
def _from_bits(bits: tl.tensor) -> tl.tensor:
    """Bytes in E4M3 as float16, divided by 256: the exponents' biases are 7 and 15."""
    wide = bits.to(tl.uint16)
    return (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.float16, bitcast=True)


@triton.jit
def _add_product(
    total: tl.tensor, x: tl.tensor, x_scale: tl.tensor, weight: tl.tensor, scale: tl.tensor, inside: tl.tensor,
    FORMAT: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """total + x · weight, where `weight` and `scale` are addresses, and both are of one block of scales."""
    if FORMAT == "dense":
        return tl.dot(x, tl.load(weight, mask=inside, other=0.0), total, input_precision="ieee")
    elif FORMAT == "w8a16":
        unpacked = _from_bits(tl.load(weight, mask=inside, other=0)).to(x.dtype)
        return total + tl.dot(x, unpacked, input_precision="ieee") * (tl.load(scale) * 256.0)[None, :]
    else:
        product = tl.dot(x, tl.load(weight, mask=inside, other=0.0))
        return total + product * (x_scale[:, None] * tl.load(scale)[None, :])


@triton.jit(do_not_specialize=["rows", "tiles", "scales"])
def _matmul_kernel(
    x: tl.tensor, x_scale: tl.tensor, weight: tl.tensor, scale: tl.tensor, bias: tl.tensor, order: tl.tensor,
    bounds: tl.tensor, factors: tl.tensor, out: tl.tensor, rows: tl.tensor, tiles: tl.tensor,
    N: tl.tensor,  # columns of the output; with GATED, weight has twice as many rows
    K: tl.tensor,
    scales: tl.tensor,  # in a row of `scale`
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, SCALE_ROWS: tl.constexpr, SCALE_COLUMNS: tl.constexpr,
    FORMAT: tl.constexpr,
    QUANTIZE: tl.constexpr,  # x, to fp8
    LARGEST: tl.constexpr, TINY: tl.constexpr, GROUPED: tl.constexpr, GATED: tl.constexpr, BIASED: tl.constexpr,
    TILE_EXPERTS: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr, TILE_DEPTH: tl.constexpr,
    SIDE_BY_SIDE: tl.constexpr,
) -> None:  # fmt: skip
    """One program: one tile of the output."""
    wide = SIDE_BY_SIDE * ((N + TILE_COLUMNS - 1) // TILE_COLUMNS)
    first = tl.program_id(0) // wide * SIDE_BY_SIDE
    height = min(tiles - first, SIDE_BY_SIDE)
    tile = first + tl.program_id(0) % wide % height
    column = tl.program_id(0) % wide // height * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    row = tile * TILE_ROWS + tl.arange(0, TILE_ROWS)
    if GROUPED:
        number = tl.arange(0, TILE_EXPERTS)
        begin = tl.load(bounds + number, mask=number < EXPERTS, other=0)
        end = tl.load(bounds + number + 1, mask=number < EXPERTS, other=0)
        own = (end - begin + TILE_ROWS - 1) // TILE_ROWS
        after = tl.cumsum(own, 0)
        expert = tl.sum((after <= tile).to(tl.int32), 0)
        if expert >= EXPERTS:
            return
        here = number == expert
        rows = tl.sum(tl.where(here, end, 0), 0)
        row = tl.sum(tl.where(here, begin - (after - own) * TILE_ROWS, 0), 0) + row
        real = row < rows
        pair = tl.load(order + row, mask=real, other=0)
        source = pair // TOP_K if GATED else tl.where(real, row, 0)
        target = row if GATED else pair
        weight += expert.to(tl.int64) * ((2 if GATED else 1) * N) * K
        scale += expert * (((2 if GATED else 1) * N + SCALE_ROWS - 1) // SCALE_ROWS) * scales
    else:
        real = row < rows
        source = tl.where(real, row, 0)
        target = row
    source, target = source.to(tl.int64), target.to(tl.int64)
    column_read = tl.where(column < N, column, 0)
    depth = tl.arange(0, TILE_DEPTH)
    total = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float32)
    second = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float32)
    for k in range(0, K, TILE_DEPTH):
        inside = k + depth < K
        part = tl.load(x + source[:, None] * K + k + depth[None, :], mask=inside[None, :], other=0.0)
        at = weight + column_read[None, :] * K + k + depth[:, None]
        at_scale = scale + column_read // SCALE_ROWS * scales + k // SCALE_COLUMNS
        part_scale = row
        if FORMAT == "w8a8":
            if QUANTIZE:
                part, part_scale = _quantized(part, LARGEST, TINY)
            else:
                part_scale = tl.load(x_scale + source * ((K + 127) // 128) + k // 128)
        total = _add_product(total, part, part_scale, at, at_scale, inside[:, None], FORMAT)
        if GATED:
            at_scale = scale + (N + column_read) // SCALE_ROWS * scales + k // SCALE_COLUMNS
            second = _add_product(second, part, part_scale, at + N * K, at_scale, inside[:, None], FORMAT)
    if GATED:
        total = total / (1.0 + tl.exp(-total)) * second
    elif GROUPED:
        total *= tl.load(factors + target, mask=real, other=0.0).to(tl.float32)[:, None]
    elif BIASED:
        total += tl.load(bias + column_read).to(tl.float32)[None, :]
    kept = real[:, None] & (column < N)[None, :]
    tl.store(out + target[:, None] * N + column[None, :], total.to(out.dtype.element_ty), mask=kept)
