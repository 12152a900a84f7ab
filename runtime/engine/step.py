"""One step as a row of integers: what the driver tells every rank, and what the index tensors are made from.

    int32   R  T  S  W | tokens T | positions T | slots T | samples S | starts R + 1 | contexts R | tables R·W

The letters and fields are those of `runtime.ops.batch.Batch`; W is the number of blocks of the longest request. One
buffer travels to the other ranks and to the device in one copy.
"""

from __future__ import annotations

from array import array
from itertools import accumulate

import torch

from runtime.engine.blocks import PADDING_BLOCK
from runtime.engine.scheduler import Row
from runtime.ops.batch import Batch

HEADER = 4
INT32 = "i"


def pack_step(rows: list[Row], block_size: int) -> array[int]:
    """The rows of one step, in order."""
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    for row in rows:
        end = row.start + row.count
        blocks = row.seq.blocks
        tokens += row.seq.tokens[row.start : end]
        positions += range(row.start, end)
        slots += [blocks[i // block_size] * block_size + i % block_size for i in range(row.start, end)]
    starts = [0, *accumulate(row.count for row in rows)]
    contexts = [row.start + row.count for row in rows]
    samples = [starts[i + 1] - 1 for i, row in enumerate(rows) if row.samples]
    width = -(-max(contexts) // block_size)
    numbers = [len(rows), len(tokens), len(samples), width, *tokens, *positions, *slots, *samples, *starts, *contexts]
    for row in rows:
        numbers += (row.seq.blocks + [PADDING_BLOCK] * width)[:width]
    return array(INT32, numbers)


def unpack_step(step: array[int] | bytearray, device: torch.device) -> Batch:
    """The same step as tensors on `device`, which share the buffer on a CPU."""
    packed = torch.frombuffer(step, dtype=torch.int32)
    requests, count, sampled, width = packed[:HEADER].tolist()
    sizes = [3 * count + sampled, requests + 1, requests, requests * width]
    starts, contexts = torch.split(packed[HEADER:], sizes)[1:3]
    rows = zip((starts[1:] - starts[:-1]).tolist(), contexts.tolist(), strict=True)
    indices, starts, contexts, tables = torch.split(packed.to(device)[HEADER:], sizes)
    tokens, positions, slots, samples = torch.split(indices.long(), [count, count, count, sampled])
    return Batch(
        tokens=tokens,
        positions=positions,
        slots=slots,
        starts=starts,
        contexts=contexts,
        tables=tables.view(requests, width),
        samples=samples,
        rows=tuple(rows),
    )
