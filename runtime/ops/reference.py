"""Every op in plain torch: what the fast versions are tested against. Correct first, readable second, fast never.

Shapes: T tokens, H hidden, N query heads, K key-value heads, D head size, R requests, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.ops.batch import Batch

Layer = Callable[[Tensor], Tensor]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension; the mean is taken in float32."""
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return weight * y.to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(norm(x + residual), x + residual)."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) · up for gate_up [T, 2·I] = gate | up; returns [T, I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rope(x: Tensor, table: Tensor, positions: Tensor) -> Tensor:
    """Rotates x [T, heads, D] by `positions` [T]; dimension i pairs with i + D/2 (the Hugging Face layout)."""
    cos, sin = table[positions].to(x.dtype)[:, None, :].chunk(2, dim=-1)
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


def write_kv(key: Tensor, value: Tensor, cache: Tensor, slots: Tensor) -> None:
    """Stores key and value [T, K, D] in cache [2, blocks, block_size, K, D] at `slots` [T]."""
    flat = cache.flatten(1, 2)
    flat[0].index_copy_(0, slots, key.to(cache.dtype))
    flat[1].index_copy_(0, slots, value.to(cache.dtype))


def rope_write(
    qkv: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    table: Tensor,
    cache: Tensor,
    batch: Batch,
) -> Tensor:
    """From qkv [T, (N + 2K)·D] to the rotated query [T, N, D]; rotated keys and values go to the cache.

    `norms` are the RMSNorm weights [D] of q and k where the family has them (Qwen3), applied before the rotation.
    """
    heads, dim = cache.shape[3:]
    rows = qkv.view(qkv.shape[0], -1, dim)
    split = rows.shape[1] - 2 * heads
    query, key, value = rows[:, :split], rows[:, split : split + heads], rows[:, split + heads :]
    if norms is not None:
        query, key = rms_norm(query, norms[0], eps), rms_norm(key, norms[1], eps)
    write_kv(rope(key, table, batch.positions), value, cache, batch.slots)
    return rope(query, table, batch.positions)


def attention(query: Tensor, cache: Tensor, batch: Batch, scale: float) -> Tensor:
    """Causal attention of query [T, N, D] over the cached keys and values of its request; returns [T, N, D].

    Query token i of a request with n query tokens and context c sees the first c - n + i + 1 keys.
    """
    flat = cache.flatten(1, 2)
    block_size = cache.shape[2]
    out = torch.empty_like(query)
    start = 0
    for row, (count, context) in enumerate(batch.rows):
        blocks = batch.tables[row, : -(-context // block_size)].long()
        offsets = torch.arange(block_size, device=query.device)
        slots = (blocks[:, None] * block_size + offsets).flatten()[:context]
        key, value = flat[:, slots].to(query.dtype).transpose(1, 2)  # [K, context, D] each
        q = query[start : start + count].transpose(0, 1)
        mask = None
        if count > 1:
            mask = torch.ones(count, context, dtype=torch.bool, device=query.device).tril(context - count)
        o = F.scaled_dot_product_attention(q, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
        out[start : start + count] = o.transpose(0, 1)
        start += count
    return out


def route(logits: Tensor, top_k: int, norm_topk: bool) -> tuple[Tensor, Tensor]:
    """Which experts each token goes to, from the router's logits [T, E]: weights [T, top_k] and experts [T, top_k].

    Softmax over all E experts in float32, then top-k; `norm_topk` makes the chosen weights sum to 1.
    """
    weights, chosen = torch.topk(logits.float().softmax(-1), top_k, dim=-1)
    if norm_topk:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights.to(logits.dtype), chosen


def moe(x: Tensor, weights: Tensor, chosen: Tensor, experts: Mapping[int, Layer]) -> Tensor:
    """Sparse MLP of x [T, H], routed by weights and chosen [T, top_k] to experts [t, H] → [t, H]; returns [T, H].

    `experts` are those that are here, by number; what is returned is their part.
    """
    out = torch.zeros_like(x)
    for number in sorted(experts.keys() & set(chosen.flatten().tolist())):
        token, choice = (chosen == number).nonzero(as_tuple=True)
        out.index_add_(0, token, experts[number](x[token]) * weights[token, choice, None])
    return out
