"""The index tensors of one step: which token sits where."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """T tokens of R requests, packed one request after another.

        tokens      |a a a a|b|c c|          T = 7, R = 3
        starts       0       4 5   7         request r owns tokens [starts[r], starts[r + 1])
        contexts     4       9 5             keys that the last token of request r sees, itself included

    `slots[t]` = block·block_size + offset is where token t's key and value go; `tables[r]` lists the blocks of
    request r, padded with block 0.
    """

    tokens: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slots: Tensor  # [T] int64
    starts: Tensor  # [R + 1] int32
    contexts: Tensor  # [R] int32
    tables: Tensor  # [R, max_blocks] int32
    samples: Tensor  # [S] int64: the tokens whose logits are needed
    rows: tuple[tuple[int, int], ...]  # (query length, context length) of each request, on the host
