"""`python -m bench.scheduler`: what one step of the scheduler costs while 10 to 100,000 requests are queued.

The scheduler alone, without a model: `plan`, then `apply` with made-up tokens, then `finish` for the requests that have
ended; for each of these a new request is added, so that the queue keeps its length. Two loads: all seats taken by
decodes, and a KV pool too small for the next prompt, so that the head of the queue is looked at in vain at every step.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.machine import Machine, describe_machine
from bench.output import RESULTS, ROOT, command_line, save, today
from runtime.engine.blocks import BlockPool
from runtime.engine.scheduler import Scheduler
from runtime.engine.sequence import Sequence
from runtime.ipc import Sampling

SEATS = 256
BLOCK = 16  # tokens
PROMPT, OUTPUT = 128, 64  # tokens
BUDGET = 8192  # tokens of one step
WARM_UP, TURN = 200, 20  # steps
VOCABULARY = 50_000
EOS: frozenset[int] = frozenset()
WHOLE = -(-(PROMPT + OUTPUT) // BLOCK)  # blocks of one request at its end
POOLS = {"seats are full": SEATS * WHOLE + 1, "KV cache is full": SEATS * WHOLE // 2 + 1}


@dataclass(frozen=True, slots=True)
class Level:
    """Processor time of single steps, in microseconds, with `queued` requests waiting."""

    load: str
    queued: int
    median_us: float
    p99_us: float
    worst_us: float


@dataclass(frozen=True, slots=True)
class Report:
    """All that a run found; what its JSON file holds."""

    date: str
    command: str
    machine: Machine
    steps: int
    levels: list[Level]
    full_collection_ms: float


def main(argv: list[str]) -> int:
    options = parse(argv)
    command = command_line("bench.scheduler", argv)
    machine = describe_machine(ROOT)
    levels = [level for load in POOLS for level in measure(load, options.queued, options.steps)]
    collection = full_collection_ms(max(options.queued))
    report = Report(today(), command, machine, options.steps, levels, collection)
    name = f"{report.date}-scheduler"
    save(options.out, name, markdown(report), asdict(report))
    draw(report, options.out / f"{name}.png")
    print(table(levels))
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.scheduler", description=__doc__)
    parser.add_argument("--queued", type=int, nargs="+", default=[10, 100, 1000, 10_000, 100_000])
    parser.add_argument("--steps", type=int, default=1000, help="measured at each level")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    return parser.parse_args(argv)


class Bench:
    """One scheduler at one level."""

    def __init__(self, load: str, queued: int) -> None:
        self.load, self.queued = load, queued
        pool = BlockPool(POOLS[load], BLOCK)
        self.scheduler = Scheduler(pool, max_model_len=4096, max_num_seqs=SEATS, max_batched_tokens=BUDGET)
        self.times_us: list[float] = []
        self._arriving = requests()
        for request in itertools.islice(self._arriving, queued + SEATS):
            self.scheduler.add(request)

    def run(self, steps: int) -> None:
        """Processor time, so that what else runs on the machine counts only through its caches."""
        for _ in range(steps):
            arrived = list(itertools.islice(self._arriving, max(0, self.queued - len(self.scheduler.waiting))))
            begin = time.thread_time_ns()
            for request in arrived:
                self.scheduler.add(request)
            run_step(self.scheduler)
            self.times_us.append((time.thread_time_ns() - begin) / 1000)

    def level(self) -> Level:
        times = sorted(self.times_us)
        at = len(times)
        return Level(self.load, self.queued, times[at // 2], times[at * 99 // 100], times[-1])


def measure(load: str, queued: list[int], steps: int) -> list[Level]:
    """All levels of one load. They take turns, so that a slow moment of the machine hits each alike."""
    benches = [Bench(load, length) for length in queued]
    for bench in benches:
        bench.run(WARM_UP)
        bench.times_us.clear()
    for _ in range(steps // TURN):
        for bench in benches:
            bench.run(TURN)
    return [bench.level() for bench in benches]


def full_collection_ms(queued: int) -> float:
    """Milliseconds of processor time that one full pass of Python's garbage collector takes over the queue alone."""
    gc.collect()
    gc.freeze()
    held = list(itertools.islice(requests(), queued))
    begin = time.thread_time_ns()
    gc.collect()
    spent = time.thread_time_ns() - begin
    held.clear()
    gc.unfreeze()
    return spent / 1e6


def requests() -> Iterator[Sequence]:
    """Prompts of random tokens; each output ends at another length, so that ends spread over the steps."""
    rng = random.Random(0)
    for number in itertools.count():
        prompt = rng.choices(range(VOCABULARY), k=PROMPT)
        yield Sequence(str(number), prompt, Sampling(max_tokens=rng.randint(OUTPUT // 2, OUTPUT), temperature=0.0))


def run_step(scheduler: Scheduler) -> None:
    rows = scheduler.plan()
    sampled = [row.seq for row in rows if row.samples]
    scheduler.apply(rows, [len(seq.tokens) for seq in sampled])
    for seq in sampled:
        if seq.finish_reason(EOS, scheduler.max_model_len):
            scheduler.finish(seq)


def table(levels: list[Level]) -> str:
    lines = ["| load | queued | median, µs | 99th percentile, µs | worst, µs |", "| --- " * 5 + "|"]
    for one in levels:
        numbers = (one.queued, one.median_us, one.p99_us, one.worst_us)
        lines.append(" | ".join([f"| {one.load}", *(f"{number:,.0f}" for number in numbers)]) + " |")
    return "\n".join(lines)


def markdown(report: Report) -> str:
    machine = report.machine
    ratios = ", ".join(f"{load}: {_growth(report.levels, load):.2f}×" for load in POOLS)
    return f"""# The scheduler's step, 10 to 100,000 queued requests

{machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB, {machine.system}; load average {machine.load_before} before it. Commit {machine.commit}.

`{report.command}`: {SEATS} seats, prompts of {PROMPT} tokens, {OUTPUT // 2} to {OUTPUT} tokens out, blocks of {BLOCK} tokens, prefix cache on;
{report.steps:,} steps at each level, in turns. Processor time of `add`, `plan`, `apply` and `finish` together, without a model. "Seats are full": {SEATS} decodes in every
step. "KV cache is full": blocks for about half of them, and the head of the queue is looked at in vain at every step.

{table(report.levels)}

What grows with the queue is a full pass of Python's garbage collector: {report.full_collection_ms:,.0f} ms over the longest queue. Python makes one when a quarter
of all that it holds is new, at that queue after some 25,000 arrivals. What the engine holds once it has started is left out of it (`gc.freeze`).

Median at the longest queue ÷ median at the shortest: {ratios}.

![Median and 99th percentile of a step's time over the length of the queue]({report.date}-scheduler.png)
"""  # noqa: E501


def _growth(levels: list[Level], load: str) -> float:
    medians = [one.median_us for one in levels if one.load == load]
    return medians[-1] / medians[0]


def draw(report: Report, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for load in POOLS:
        levels = [one for one in report.levels if one.load == load]
        queued = [one.queued for one in levels]
        (line,) = axes.plot(queued, [one.median_us for one in levels], marker="o", label=f"{load}: median")
        p99 = [one.p99_us for one in levels]
        axes.plot(queued, p99, marker=".", linestyle="--", color=line.get_color(), label=f"{load}: 99th percentile")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("queued requests")
    axes.set_ylabel("processor time of one step, µs")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
