"""Paged attention in Triton: one kernel for batches with prompts in them, and one for batches of decodes.

Both pack the query heads that share a key-value head into the rows of one tile, so that a key is read once for all of
them, and walk the keys with an online softmax (Milakov and Gimelshein, arXiv 1805.02867; FlashAttention-2,
arXiv 2307.08691). Scores are kept in base 2, because exp2 is what the hardware has.

    rows of a tile, 3 heads a group     t0h0 t0h1 t0h2 t1h0 t1h1 t1h2 t2h0 … | rest: masked
    keys of a request in a decode       |segment 0|segment 1|segment 2| …       one program each, then a reduction

Nothing on the host depends on a context length, so a batch of decodes can be captured in a CUDA graph and replayed.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.ops.batch import Batch

PROGRAMS = 512  # about four for each multiprocessor of a large GPU: enough to hide the latency of memory
MAX_SEGMENTS = 64
INDICES = ["starts", "contexts", "tables"]  # they lie anywhere in a step's buffer: aligned or not, one kernel
LOG2_E = math.log2(math.e)


def attention(query: Tensor, cache: Tensor, batch: Batch, scale: float) -> Tensor:
    """`runtime.ops.reference.attention`."""
    query = query.contiguous()
    if query.shape[0] == len(batch.rows):
        return _decode(query, cache, batch, scale)
    return _prefill(query, cache, batch, scale)


def count_segments(requests: int, kv_heads: int) -> int:
    """Into how many parts the keys of each request are split: a power of two, known without the contexts."""
    wanted = max(1, min(MAX_SEGMENTS, PROGRAMS // (requests * kv_heads)))
    return 1 << (wanted - 1).bit_length()


def _prefill(query: Tensor, cache: Tensor, batch: Batch, scale: float) -> Tensor:
    tokens, heads, dim = query.shape
    block_size, kv_heads = cache.shape[2:4]
    group, requests = heads // kv_heads, len(batch.rows)
    rows, keys, warps = (128, 64, 8) if query.element_size() == 2 else (32, 32, 4)
    rows = max(rows, triton.next_power_of_2(group))
    out = torch.empty_like(query)
    tiles = tokens // (rows // group) + requests  # at least the sum over the requests, each rounded up
    _prefill_kernel[(tiles, kv_heads)](
        query, cache[0], cache[1], batch.starts, batch.contexts, batch.tables, out,
        scale * LOG2_E, requests, batch.tables.stride(0),
        GROUP=group, KV_HEADS=kv_heads, DIM=dim, BLOCK_SIZE=block_size,
        TILE_ROWS=rows, TILE_KEYS=keys, TILE_DIM=_tile_dim(dim), num_warps=warps, num_stages=2,
    )  # fmt: skip
    return out


def _decode(query: Tensor, cache: Tensor, batch: Batch, scale: float) -> Tensor:
    requests, heads, dim = query.shape
    block_size, kv_heads = cache.shape[2:4]
    group, segments = heads // kv_heads, count_segments(requests, kv_heads)
    keys = 64 if query.element_size() == 2 else 32  # per step of the loop
    partial = query.new_empty(requests, heads, segments, dim, dtype=torch.float32)
    weight = query.new_empty(requests, heads, segments, dtype=torch.float32)
    out = torch.empty_like(query)
    _decode_kernel[(requests, kv_heads, segments)](
        query, cache[0], cache[1], batch.contexts, batch.tables, partial, weight,
        scale * LOG2_E, segments, batch.tables.stride(0),
        GROUP=group, KV_HEADS=kv_heads, DIM=dim, BLOCK_SIZE=block_size,
        TILE_ROWS=max(16, triton.next_power_of_2(group)), TILE_KEYS=keys, TILE_DIM=_tile_dim(dim),
        num_warps=4, num_stages=2,
    )  # fmt: skip
    _reduce_kernel[(requests, heads)](
        partial, weight, batch.contexts, out,
        HEADS=heads, DIM=dim, SEGMENTS=segments, TILE_KEYS=keys, TILE_DIM=_tile_dim(dim), num_warps=4,
    )  # fmt: skip
    return out


def _tile_dim(dim: int) -> int:
    """tl.dot takes powers of two from 16 on."""
    return max(16, 1 << (dim - 1).bit_length())


@triton.jit
def _attend(
    query: tl.tensor,  # [TILE_ROWS, TILE_DIM]
    keys: tl.tensor,  # of this key-value head
    values: tl.tensor,
    table: tl.tensor,  # of this request
    limits: tl.tensor,  # [TILE_ROWS]: how many keys of the request a row sees
    begin: tl.tensor,
    end: tl.tensor,
    scale: tl.tensor,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_KEYS: tl.constexpr, TILE_DIM: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Attention over keys [begin, end), of which every row must see the first: sum of values weighted by
    2^(score - best), the best score, and the sum of the weights."""
    dim = tl.arange(0, TILE_DIM)
    best = tl.full([TILE_ROWS], -float("inf"), tl.float32)
    total = tl.zeros([TILE_ROWS], tl.float32)
    gathered = tl.zeros([TILE_ROWS, TILE_DIM], tl.float32)
    for first in range(begin, end, TILE_KEYS):
        index = first + tl.arange(0, TILE_KEYS)
        known = index < end
        block = tl.load(table + index // BLOCK_SIZE, mask=known, other=0).to(tl.int64)
        offset = (block * BLOCK_SIZE + index % BLOCK_SIZE) * (KV_HEADS * DIM)
        key = tl.load(keys + offset[None, :] + dim[:, None], mask=known[None, :] & (dim < DIM)[:, None], other=0.0)
        score = tl.dot(query, key, input_precision="ieee") * scale
        score = tl.where(known[None, :] & (index[None, :] < limits[:, None]), score, -float("inf"))
        higher = tl.maximum(best, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        fade = tl.exp2(best - higher)
        value = tl.load(values + offset[:, None] + dim[None, :], mask=known[:, None] & (dim < DIM)[None, :], other=0.0)
        gathered = gathered * fade[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        total = total * fade + tl.sum(weight, 1)
        best = higher
    return gathered, best, total


@triton.jit
def _owner(tile: tl.tensor, starts: tl.tensor, requests: tl.tensor, TILE_TOKENS: tl.constexpr) -> tl.tensor:
    """The request of a tile: the last one whose first tile, starts[r] // TILE_TOKENS + r, is not after it."""
    low = tl.full([], 0, tl.int32)
    high = low + requests
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(starts + middle) // TILE_TOKENS + middle <= tile:
            low = middle
        else:
            high = middle
    return low


@triton.jit(do_not_specialize=["requests", "table_width", *INDICES])
def _prefill_kernel(
    query: tl.tensor, keys: tl.tensor, values: tl.tensor, starts: tl.tensor, contexts: tl.tensor, tables: tl.tensor,
    out: tl.tensor, scale: tl.tensor, requests: tl.tensor, table_width: tl.tensor,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE_ROWS: tl.constexpr,
    TILE_KEYS: tl.constexpr, TILE_DIM: tl.constexpr,
) -> None:  # fmt: skip
    """One program: some tokens of one request, with the query heads of one key-value head."""
    TILE_TOKENS: tl.constexpr = TILE_ROWS // GROUP
    tile, kv_head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)  # a prompt's longest rows first
    request = _owner(tile, starts, requests, TILE_TOKENS)
    start, end = tl.load(starts + request), tl.load(starts + request + 1)
    first = start + (tile - start // TILE_TOKENS - request) * TILE_TOKENS
    if first >= end:
        return
    unseen = tl.load(contexts + request) - end  # token t sees the first unseen + t + 1 keys
    row, dim = tl.arange(0, TILE_ROWS), tl.arange(0, TILE_DIM)
    token, head = first + row // GROUP, kv_head * GROUP + row % GROUP
    inside = ((row < TILE_TOKENS * GROUP) & (token < end))[:, None] & (dim < DIM)[None, :]
    at = (token.to(tl.int64) * (KV_HEADS * GROUP) + head)[:, None] * DIM + dim[None, :]
    gathered, _, total = _attend(
        tl.load(query + at, mask=inside, other=0.0),
        keys + kv_head * DIM,
        values + kv_head * DIM,
        tables + request.to(tl.int64) * table_width,
        unseen + token + 1,
        0,
        unseen + tl.minimum(first + TILE_TOKENS, end),
        scale, KV_HEADS, DIM, BLOCK_SIZE, TILE_ROWS, TILE_KEYS, TILE_DIM,
    )  # fmt: skip
    tl.store(out + at, (gathered / total[:, None]).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _segment_length(context: tl.tensor, segments: tl.tensor, TILE_KEYS: tl.constexpr) -> tl.tensor:
    """Keys per segment, whole tiles; a short context leaves the last segments empty."""
    return tl.cdiv(tl.cdiv(context, segments), TILE_KEYS) * TILE_KEYS


@triton.jit(do_not_specialize=["segments", "table_width", *INDICES])
def _decode_kernel(
    query: tl.tensor, keys: tl.tensor, values: tl.tensor, contexts: tl.tensor, tables: tl.tensor, partial: tl.tensor,
    weight: tl.tensor, scale: tl.tensor, segments: tl.tensor, table_width: tl.tensor,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE_ROWS: tl.constexpr,
    TILE_KEYS: tl.constexpr, TILE_DIM: tl.constexpr,
) -> None:  # fmt: skip
    """One program: one segment of the keys of one request, with the query heads of one key-value head.

    Writes its own attention to `partial` [R, N, segments, D] and log2 of its weight to `weight` [R, N, segments].
    """
    request, kv_head, segment = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    context = tl.load(contexts + request)
    length = _segment_length(context, segments, TILE_KEYS)
    begin = segment * length
    if begin >= context:
        return
    row, dim = tl.arange(0, TILE_ROWS), tl.arange(0, TILE_DIM)
    inside = (row < GROUP)[:, None] & (dim < DIM)[None, :]
    head = (request * KV_HEADS + kv_head) * GROUP + row
    gathered, best, total = _attend(
        tl.load(query + head[:, None] * DIM + dim[None, :], mask=inside, other=0.0),
        keys + kv_head * DIM,
        values + kv_head * DIM,
        tables + request * table_width,
        context + tl.zeros([TILE_ROWS], tl.int32),
        begin,
        tl.minimum(begin + length, context),
        scale, KV_HEADS, DIM, BLOCK_SIZE, TILE_ROWS, TILE_KEYS, TILE_DIM,
    )  # fmt: skip
    at = head * segments + segment
    tl.store(partial + at[:, None] * DIM + dim[None, :], gathered / total[:, None], mask=inside)
    tl.store(weight + at, best + tl.log2(total), mask=row < GROUP)


@triton.jit(do_not_specialize=INDICES)
def _reduce_kernel(
    partial: tl.tensor, weight: tl.tensor, contexts: tl.tensor, out: tl.tensor,
    HEADS: tl.constexpr, DIM: tl.constexpr, SEGMENTS: tl.constexpr, TILE_KEYS: tl.constexpr, TILE_DIM: tl.constexpr,
) -> None:  # fmt: skip
    """The segments of one query head of one request, weighted."""
    request = tl.program_id(0).to(tl.int64)
    head = request * HEADS + tl.program_id(1)
    context = tl.load(contexts + request)
    segment, dim = tl.arange(0, SEGMENTS), tl.arange(0, TILE_DIM)
    written = segment * _segment_length(context, SEGMENTS, TILE_KEYS) < context
    share = tl.load(weight + head * SEGMENTS + segment, mask=written, other=-float("inf"))
    share = tl.exp2(share - tl.max(share, 0))
    at = (head * SEGMENTS + segment)[:, None] * DIM + dim[None, :]
    parts = tl.load(partial + at, mask=written[:, None] & (dim < DIM)[None, :], other=0.0)
    result = tl.sum(parts * share[:, None], 0) / tl.sum(share, 0)
    tl.store(out + head * DIM + dim, result.to(out.dtype.element_ty), mask=dim < DIM)
