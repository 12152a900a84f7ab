"""Index tensors of steps that no scheduler planned."""

from __future__ import annotations

from itertools import accumulate

import torch

from runtime.ops.batch import Batch


def make_batch(
    rows: list[tuple[int, int]], block_size: int, device: torch.device | None = None, *, width: int = 0
) -> tuple[Batch, int]:
    """A batch of (query length, context) whose requests own shuffled blocks; also the number of blocks.

    `width`: of the block tables, where it shall be more than the longest request needs.
    """
    widths = [-(-context // block_size) for _, context in rows]
    blocks = (torch.randperm(sum(widths)) + 1).tolist()
    starts = [0, *accumulate(count for count, _ in rows)]
    tables = torch.zeros(len(rows), max([width, *widths]), dtype=torch.int32)
    positions: list[int] = []
    slots: list[int] = []
    for index, (count, context) in enumerate(rows):
        own = [blocks.pop() for _ in range(widths[index])]
        tables[index, : len(own)] = torch.tensor(own)
        for position in range(context - count, context):
            positions.append(position)
            slots.append(own[position // block_size] * block_size + position % block_size)
    batch = Batch(
        tokens=torch.zeros(starts[-1], dtype=torch.int64, device=device),
        positions=torch.tensor(positions, device=device),
        slots=torch.tensor(slots, device=device),
        starts=torch.tensor(starts, dtype=torch.int32, device=device),
        contexts=torch.tensor([context for _, context in rows], dtype=torch.int32, device=device),
        tables=tables.to(device),
        samples=torch.tensor(starts[1:], device=device) - 1,
        rows=tuple(rows),
    )
    return batch, sum(widths) + 1
