"""CPU ops: our own kernels, or without a compiler torch's ops and prepacked oneDNN linear layers. All is in float32,
but for linear layers in int8 where that is asked for."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.ops import int8, reference
from runtime.ops.batch import Batch
from runtime.ops.cpu_kernels import CpuKernels, load_library
from runtime.ops.cpu_panels import Panels
from runtime.ops.ops import REFERENCE, Linear, Ops, in_bfloat16, one_by_one, unpacked

# oneDNN picks the packed layout for a number of rows; measured on AVX-512, 32 is within noise of the best at every
# batch size, while a layout for no number is up to 7× slower at one row.
PACK_ROWS = 32


def cpu_ops(quantization: str | None = None) -> Ops:
    """Our kernels where a compiler is at hand, else torch's own ops. `quantization`: "int8", or None."""
    library, is_int8 = load_library(), quantization == "int8"
    plain = replace(REFERENCE, cache_dtype=torch.bfloat16 if is_int8 else None)  # less is lost than by the weights
    if library is None:
        exact = unpacked(pack_linear, torch.float32)
        pack = unpacked(int8.pack_linear, torch.float32) if is_int8 else exact
        experts = one_by_one(pack, REFERENCE.silu_mul)
        return replace(
            plain, name="cpu-torch", pack_linear=pack, pack_router=exact, pack_experts=experts, attention=attention
        )
    kernels, panels = CpuKernels(library), Panels(library)

    def pack_exact(weight: Tensor, bias: Tensor | None) -> Linear:
        halves = in_bfloat16(weight)
        return kernels.pack_linear(weight, bias) if halves is None else panels.pack_bf16(halves, bias)

    exact = unpacked(pack_exact, torch.float32)
    pack = unpacked(panels.pack_int8, torch.float32) if is_int8 else exact
    return replace(
        plain,
        name="cpu",
        pack_linear=pack,
        pack_router=exact,
        pack_experts=one_by_one(pack, kernels.silu_mul),
        rms_norm=kernels.rms_norm,
        add_rms_norm=kernels.add_rms_norm,
        silu_mul=kernels.silu_mul,
        rope_write=kernels.rope_write,
        attention=kernels.attention,
        fuse=panels.fuse,
    )


def pack_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """A linear layer whose weight [out, in] is stored in oneDNN's own order."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACK_ROWS)
    run = torch.ops.mkldnn._linear_pointwise

    def linear(x: Tensor) -> Tensor:
        out: Tensor = run(x, packed, bias, "none", [], "")
        return out

    return linear


def attention(query: Tensor, cache: Tensor, batch: Batch, scale: float) -> Tensor:
    """Requests with one query token run as one batch; the others, which are few, one by one."""
    decodes = [row for row, (count, _) in enumerate(batch.rows) if count == 1]
    if len(decodes) < 2:
        return reference.attention(query, cache, batch, scale)
    out = torch.empty_like(query)
    rows = torch.tensor(decodes)
    tokens = batch.starts[:-1][rows].long()
    contexts = batch.contexts[rows]
    longest = int(contexts.max())
    block_size, heads, dim = cache.shape[2:]
    blocks = batch.tables[rows, : -(-longest // block_size)]
    keys, values = cache[:, blocks.flatten()].to(query.dtype).view(2, len(decodes), -1, heads, dim).transpose(2, 3)
    mask = torch.arange(keys.shape[2]) < contexts[:, None]
    q = query[tokens].unsqueeze(2)  # [R, N, 1, D]
    o = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask[:, None, None], scale=scale, enable_gqa=True)
    out[tokens] = o.squeeze(2)
    if len(decodes) < len(batch.rows):
        _prefill_rows(out, query, cache, batch, scale)
    return out


def _prefill_rows(out: Tensor, query: Tensor, cache: Tensor, batch: Batch, scale: float) -> None:
    start = 0
    for row, (count, context) in enumerate(batch.rows):
        if count > 1:
            one = replace(batch, rows=((count, context),), tables=batch.tables[row : row + 1])
            span = slice(start, start + count)
            out[span] = reference.attention(query[span], cache, one, scale)
        start += count
