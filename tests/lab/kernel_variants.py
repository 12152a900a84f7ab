"""Counts the variants of each Triton kernel that steps of many shapes would compile; compiles and launches none.

    python -m tests.lab.kernel_variants

prints {kernel: number of variants}. A variant is what Triton's own launcher tells apart: types, constants, and whether
a number is 1 or a multiple of 16, or an address one of 16. It must not be in interpreter mode.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import torch
from triton._C.libtriton import native_specialize_impl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import JITFunction

from runtime.ops.batch import Batch
from runtime.ops.gpu import gpu_ops
from runtime.ops.ops import REFERENCE
from tests.lab.batches import make_batch

HEADS, KV_HEADS, DIM, BLOCK = 14, 2, 64, 16
BACKEND = CUDABackend(GPUTarget("cuda", 90, 32))


def variant(kernel: JITFunction, arguments: tuple[object, ...], keywords: dict[str, object]) -> str:
    options = {name: value for name, value in keywords.items() if name in ("num_warps", "num_stages")}
    given = {name: value for name, value in keywords.items() if name not in options}
    bound = kernel.signature.bind(*arguments, **given).arguments
    key = [
        bound[parameter.name]
        if parameter.is_constexpr
        else native_specialize_impl(
            BACKEND,
            bound[parameter.name],
            False,
            not parameter.do_not_specialize,
            not parameter.do_not_specialize_on_alignment,
        )
        for parameter in kernel.params
    ]
    return repr((key, options))


def moved(batch: Batch, by: int) -> Batch:
    """The same batch, its index tensors `by` elements further in memory."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat((tensor.new_zeros(by), tensor.flatten()))[by:].view(tensor.shape)

    return replace(
        batch,
        positions=move(batch.positions),
        slots=move(batch.slots),
        starts=move(batch.starts),
        contexts=move(batch.contexts),
        tables=move(batch.tables),
    )


def steps() -> Iterator[Batch]:
    """Decodes of 1 to 300 requests, prompts, chunks and mixtures, at four places in memory."""
    decodes = [[(1, 1 + 7 * i % 90) for i in range(count)] for count in (1, 2, 3, 16, 64, 300)]
    mixtures = [[(5, 5)], [(16, 16), (1, 33)], [(17, 40), (1, 16), (3, 3)], [(1, 300)] * 20 + [(64, 128)]]
    for rows in [*decodes, *mixtures]:
        batch, _ = make_batch(rows, BLOCK)
        yield from (moved(batch, by) for by in range(4))


def main() -> None:
    found: dict[str, set[str]] = defaultdict(set)

    def note_instead(kernel: JITFunction, *arguments: object, grid: object, warmup: bool, **keywords: object) -> None:
        found[kernel.__name__].add(variant(kernel, arguments, keywords))

    JITFunction.run = note_instead
    ops = gpu_ops(REFERENCE, torch.bfloat16)
    cache = torch.zeros(2, 4, BLOCK, KV_HEADS, DIM, dtype=torch.bfloat16)
    table, weight = torch.zeros(512, DIM), torch.zeros(HEADS * DIM, dtype=torch.bfloat16)
    for batch in steps():
        tokens = len(batch.tokens)
        x = torch.zeros(tokens, HEADS * DIM, dtype=torch.bfloat16)
        qkv = torch.zeros(tokens, (HEADS + 2 * KV_HEADS) * DIM, dtype=torch.bfloat16)
        ops.rms_norm(x, weight, 1e-6)
        ops.add_rms_norm(x, x, weight, 1e-6)
        ops.silu_mul(x)
        ops.attention(ops.rope_write(qkv, None, 1e-6, table, cache, batch), cache, batch, 0.1)
    experts = ops.pack_experts(
        torch.zeros(8, 256, 64, dtype=torch.bfloat16), torch.zeros(8, 64, 128, dtype=torch.bfloat16), 0
    )
    for tokens in (1, 2, 3, 16, 33, 64, 90, 120, 250, 400, 2000, 5000):
        logits = torch.zeros(tokens, 8, dtype=torch.bfloat16)
        experts(torch.zeros(tokens, 64, dtype=torch.bfloat16), *ops.route(logits, 2, True))
    print(json.dumps({name: len(variants) for name, variants in found.items()}))


if __name__ == "__main__":
    main()
