"""One step as a row of integers: what the driver tells every rank, and what the index tensors are made from.

    int32   R  T  S  W  N | tokens T | positions T | slots T | samples S | starts R + 1 | contexts R | tables R·W

The letters and fields are those of `runtime.ops.batch.Batch`; W is the number of blocks of the longest request. One
buffer travels to the other ranks and to the device in one copy.

A token that the step before has chosen, and that nobody has read yet, is written as -1 - i: it is the i-th of those
that it chose, and stays on the device. N is how many of them this step may look at, 0 for none.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from itertools import accumulate

import torch
from torch import Tensor

from runtime.engine.blocks import PADDING_BLOCK
from runtime.engine.scheduler import Row
from runtime.ops.batch import Batch
from runtime.ops.sampling import to_device

HEADER = 5
INT32 = "i"
NONE: Mapping[str, int] = {}


def pack_step(
    rows: list[Row], block_size: int, chosen: Mapping[str, int] = NONE, size: int | None = None
) -> array[int]:
    """The rows of one step, in order, and rows of one token on the padding block up to `size`.

    `chosen`: where the newest token of a request stands among those that the step before chose, by request id.
    """
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    seen = 0
    for row in rows:
        end = row.start + row.count
        blocks, known = row.seq.blocks, row.seq.tokens[row.start : end]
        tokens += known
        if len(known) < row.count:
            tokens.append(-1 - chosen[row.seq.id])
            seen = max(seen, 1 + chosen[row.seq.id])
        positions += range(row.start, end)
        slots += [blocks[i // block_size] * block_size + i % block_size for i in range(row.start, end)]
    padding = [0] * ((size or len(rows)) - len(rows))
    starts = [0, *accumulate([*(row.count for row in rows), *(1 for _ in padding)])]
    contexts = [*(row.start + row.count for row in rows), *(1 for _ in padding)]
    samples = [starts[i + 1] - 1 for i, row in enumerate(rows) if row.samples]
    samples += range(starts[len(rows)], starts[-1])
    width = -(-max(contexts) // block_size)
    numbers = [len(contexts), starts[-1], len(samples), width, seen]
    for part in (tokens, padding, positions, padding, slots, padding, samples, starts, contexts):
        numbers += part
    step, none = array(INT32, numbers), array(INT32, [PADDING_BLOCK]) * width
    for row in rows:
        step.fromlist(row.seq.blocks[:width])
        step += none[len(row.seq.blocks) :]
    return step + none * len(padding)


def unpack_step(step: array[int] | bytearray, device: torch.device, newest: Callable[[int], Tensor]) -> Batch:
    """The same step as tensors on `device`, which share the buffer on a CPU. Waits for nothing.

    `newest(n)`: the first n tokens [n] that the step before chose, on `device`.
    """
    packed = torch.frombuffer(step, dtype=torch.int32)
    requests, count, sampled, width, seen = packed[:HEADER].tolist()
    sizes = [3 * count + sampled, requests + 1, requests, requests * width]
    starts, contexts = torch.split(packed[HEADER:], sizes)[1:3]
    rows = zip((starts[1:] - starts[:-1]).tolist(), contexts.tolist(), strict=True)
    indices, starts, contexts, tables = torch.split(to_device(packed, device)[HEADER:], sizes)
    tokens, positions, slots, samples = torch.split(indices.long(), [count, count, count, sampled])
    if seen:  # an invalid one (-1) ends its request, but may be an input first
        tokens = torch.where(tokens < 0, newest(seen).clamp(min=0)[(-1 - tokens).clamp(min=0)], tokens)
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
