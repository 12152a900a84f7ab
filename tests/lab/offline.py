"""Requests through scheduler and runner in this process, as the engine's loop takes them, without any other process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from runtime.engine.blocks import BlockPool
from runtime.engine.runner import Runner
from runtime.engine.scheduler import Row, Scheduler
from runtime.engine.sequence import Sequence
from runtime.ipc import Sampling
from runtime.ops.sampling import Drawn, Sample


@dataclass(frozen=True, slots=True)
class Served:
    """The samples of each request, in the order of the requests."""

    samples: list[list[Sample]]
    scheduler: Scheduler

    @property
    def tokens(self) -> list[list[int]]:
        return [[sample.token for sample in answer] for answer in self.samples]


def serve(
    runner: Runner,
    requests: Iterable[tuple[list[int], Sampling]],
    *,
    blocks: int,
    budget: int = 512,
    seats: int = 32,
    max_model_len: int = 512,
    overlap: bool = False,
    recorded: Iterable[int] = (),
) -> Served:
    """All requests, submitted together. `budget` in tokens a step; the block pool is checked after each one.

    `overlap`: each step is launched before the one ahead of it is read. `recorded`: sizes of decode steps that are
    recorded first.
    """
    runner.allocate(blocks)
    if sizes := list(recorded):
        runner.record(sizes, -(-max_model_len // runner.block_size))
    pool = BlockPool(blocks, runner.block_size)
    scheduler = Scheduler(pool, max_model_len=max_model_len, max_num_seqs=seats, max_batched_tokens=budget)
    found: dict[str, list[Sample]] = {}
    for number, (prompt, sampling) in enumerate(requests):
        scheduler.add(Sequence(str(number), prompt, sampling))
        found[str(number)] = []
    flight: tuple[list[Row], Drawn] | None = None
    while scheduler.has_work:
        planned = scheduler.plan()
        launched = (planned, runner.launch(planned)) if planned else None
        due, flight = (flight, launched) if overlap else (launched, None)
        if due is None:
            continue
        rows, samples = due[0], due[1].read()
        scheduler.apply(rows, [sample.token for sample in samples])
        for row, sample in zip([row for row in rows if row.samples], samples, strict=True):
            if row.seq.ended:
                continue
            found[row.seq.id].append(sample)
            if row.seq.finish_reason(frozenset(), max_model_len):
                scheduler.finish(row.seq)
        scheduler.check()
    return Served(list(found.values()), scheduler)
