"""The small ops of a layer in Triton: each one kernel, each rounded where the reference rounds."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.ops.batch import Batch

SILU_COLUMNS = 1024
ROPE_HEADS = 4  # heads of one program


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`runtime.ops.reference.rms_norm`."""
    x = x.contiguous()
    out = torch.empty_like(x)
    _norm(x, x, weight, out, out, eps, add=False)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`runtime.ops.reference.add_rms_norm`."""
    x, residual = x.contiguous(), residual.contiguous()
    out, total = torch.empty_like(x), torch.empty_like(x)
    _norm(x, residual, weight, out, total, eps, add=True)
    return out, total


def _norm(x: Tensor, residual: Tensor, weight: Tensor, out: Tensor, total: Tensor, eps: float, *, add: bool) -> None:
    size = x.shape[-1]
    tile = triton.next_power_of_2(size)
    _norm_kernel[(x.numel() // size,)](
        x, residual, weight, out, total, eps, SIZE=size, TILE=tile, ADD=add, num_warps=min(max(tile // 512, 1), 16)
    )


def silu_mul(gate_up: Tensor) -> Tensor:
    """`runtime.ops.reference.silu_mul`."""
    gate_up = gate_up.contiguous()
    tokens, inner = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(tokens, inner)
    grid = (tokens, triton.cdiv(inner, SILU_COLUMNS))
    _silu_kernel[grid](gate_up, out, SIZE=inner, TILE=SILU_COLUMNS, num_warps=4)
    return out


def rope_write(
    qkv: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    table: Tensor,
    cache: Tensor,
    batch: Batch,
) -> Tensor:
    """`runtime.ops.reference.rope_write`."""
    qkv = qkv.contiguous()
    kv_heads, dim = cache.shape[3:]
    heads = qkv.shape[1] // dim
    query = qkv.new_empty(qkv.shape[0], heads - 2 * kv_heads, dim)
    q_norm, k_norm = norms or (qkv, qkv)
    _rope_kernel[(qkv.shape[0], triton.cdiv(heads, ROPE_HEADS))](
        qkv, q_norm, k_norm, table, batch.positions, batch.slots, query, cache[0], cache[1], eps,
        QUERY_HEADS=heads - 2 * kv_heads, KV_HEADS=kv_heads, HALF=dim // 2, NORMED=norms is not None,
        TILE_HEADS=ROPE_HEADS, TILE_HALF=triton.next_power_of_2(dim // 2), num_warps=2,
    )  # fmt: skip
    return query


@triton.jit
def _rounded(value: tl.tensor, like: tl.tensor) -> tl.tensor:
    """`value`, which is float32, as if it had been stored in the type of `like` and loaded again."""
    return value.to(like.dtype).to(tl.float32)


@triton.jit
def _norm_kernel(
    x: tl.tensor, residual: tl.tensor, weight: tl.tensor, out: tl.tensor, total: tl.tensor, eps: tl.tensor,
    SIZE: tl.constexpr, TILE: tl.constexpr, ADD: tl.constexpr,
) -> None:  # fmt: skip
    """One program: one row."""
    column = tl.arange(0, TILE)
    inside = column < SIZE
    at = tl.program_id(0).to(tl.int64) * SIZE + column
    value = tl.load(x + at, mask=inside, other=0.0)
    if ADD:
        added = tl.load(residual + at, mask=inside, other=0.0)
        value = (value.to(tl.float32) + added.to(tl.float32)).to(added.dtype)
        tl.store(total + at, value, mask=inside)
    exact = value.to(tl.float32)
    normed = exact * tl.rsqrt(tl.sum(exact * exact, 0) / SIZE + eps)
    scaled = _rounded(normed, value) * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, scaled.to(value.dtype), mask=inside)


@triton.jit
def _silu_kernel(gate_up: tl.tensor, out: tl.tensor, SIZE: tl.constexpr, TILE: tl.constexpr) -> None:
    """One program: some columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = column < SIZE
    up = tl.load(gate_up + row * (2 * SIZE) + SIZE + column, mask=inside, other=0.0)
    gate = tl.load(gate_up + row * (2 * SIZE) + column, mask=inside, other=0.0).to(tl.float32)
    result = _rounded(gate / (1.0 + tl.exp(-gate)), up) * up.to(tl.float32)
    tl.store(out + row * SIZE + column, result.to(up.dtype), mask=inside)


@triton.jit(do_not_specialize=["positions", "slots"])  # they lie anywhere in a step's buffer
def _rope_kernel(
    qkv: tl.tensor, q_norm: tl.tensor, k_norm: tl.tensor, table: tl.tensor, positions: tl.tensor, slots: tl.tensor,
    query: tl.tensor, keys: tl.tensor, values: tl.tensor, eps: tl.tensor,
    QUERY_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, NORMED: tl.constexpr,
    TILE_HEADS: tl.constexpr, TILE_HALF: tl.constexpr,
) -> None:  # fmt: skip
    """One program: some heads of one token, whether query, key or value; each pair (i, i + D/2) in one place."""
    HEADS: tl.constexpr = QUERY_HEADS + 2 * KV_HEADS
    DIM: tl.constexpr = 2 * HALF
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * TILE_HEADS + tl.arange(0, TILE_HEADS))[:, None]
    pair = tl.arange(0, TILE_HALF)[None, :]
    inside = (head < HEADS) & (pair < HALF)
    is_query = head < QUERY_HEADS
    is_value = head >= QUERY_HEADS + KV_HEADS
    source = qkv + (token * HEADS + head) * DIM + pair
    left = tl.load(source, mask=inside, other=0.0)
    right = tl.load(source + HALF, mask=inside, other=0.0)
    exact_left, exact_right = left.to(tl.float32), right.to(tl.float32)
    if NORMED:
        squares = tl.sum(exact_left * exact_left + exact_right * exact_right, 1)[:, None]
        factor = tl.rsqrt(squares / DIM + eps)
        norm = tl.where(is_query, q_norm + pair, k_norm + pair)
        norm_left = tl.load(norm, mask=inside, other=0.0).to(tl.float32)
        norm_right = tl.load(norm + HALF, mask=inside, other=0.0).to(tl.float32)
        exact_left = _rounded(_rounded(exact_left * factor, left) * norm_left, left)
        exact_right = _rounded(_rounded(exact_right * factor, left) * norm_right, left)
    angle = table + tl.load(positions + token) * DIM + pair
    cos = _rounded(tl.load(angle, mask=pair < HALF, other=0.0), left)
    sin = _rounded(tl.load(angle + HALF, mask=pair < HALF, other=0.0), left)
    rotated_left = _rounded(exact_left * cos, left) - _rounded(exact_right * sin, left)
    rotated_right = _rounded(exact_right * cos, left) + _rounded(exact_left * sin, left)
    rotated_left, rotated_right = rotated_left.to(left.dtype), rotated_right.to(left.dtype)
    target = query + (token * QUERY_HEADS + head) * DIM + pair
    tl.store(target, rotated_left, mask=inside & is_query)
    tl.store(target + HALF, rotated_right, mask=inside & is_query)
    slot = tl.load(slots + token) * KV_HEADS
    target = keys + (slot + head - QUERY_HEADS) * DIM + pair
    is_key = (head >= QUERY_HEADS) & (head < QUERY_HEADS + KV_HEADS)
    tl.store(target, rotated_left, mask=inside & is_key)
    tl.store(target + HALF, rotated_right, mask=inside & is_key)
    target = values + (slot + head - QUERY_HEADS - KV_HEADS) * DIM + pair
    tl.store(target, left, mask=inside & is_value)
    tl.store(target + HALF, right, mask=inside & is_value)
