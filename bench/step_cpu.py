"""The demo model on this CPU, in process: steps of chosen shapes, and a whole load under the engine's scheduler."""

from __future__ import annotations

import os
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.step_model import CPU_BF16, CPU_FP32, CPU_INT8, NOTHING, Share, Step, row, share_of
from bench.step_serving import Load, Served
from runtime.cli import is_busy

if TYPE_CHECKING:
    from runtime.engine.runner import Runner

BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Rows:
    """`requests` alike in one step: `count` tokens each, the last of them number `context`."""

    requests: int
    count: int
    context: int

    @property
    def step(self) -> Step:
        return row(self.context - self.count, self.count, requests=self.requests)

    def __str__(self) -> str:
        return f"{self.requests} × {self.count} of {self.context}"


Shape = tuple[Rows, ...]
DECODES = [(Rows(requests, 1, context),) for requests in (1, 2, 4, 8, 16, 32) for context in (64, 160, 512)]
PREFILLS = [(Rows(1, count, count),) for count in (16, 64, 128, 256)]
FITTED: list[Shape] = [*DECODES, *PREFILLS]
HELD_OUT: list[Shape] = [
    (Rows(12, 1, 200),),
    (Rows(4, 128, 128),),
    (Rows(1, 64, 384),),
    (Rows(7, 1, 160), Rows(1, 128, 128)),
    (Rows(24, 1, 160), Rows(2, 128, 128)),
]


@dataclass(frozen=True, slots=True)
class Timed:
    """A shape of step and the median of its seconds."""

    shape: str
    step: Step
    seconds: float


def load_model(folder: Path, quantization: str) -> tuple[Share, Runner]:
    """The model as the engine would load it, and what its steps cost."""
    if is_busy(os.getloadavg()[0], len(os.sched_getaffinity(0))):
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the engine has it; read when torch is loaded
    import torch

    from runtime.engine.runner import Runner
    from runtime.model.checkpoint import Checkpoint, read_model_spec
    from runtime.model.decoder import load_decoder
    from runtime.ops.cpu_kernels import load_library
    from runtime.ops.ops import choose

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    spec, device, is_int8 = read_model_spec(folder), torch.device("cpu"), quantization == "int8"
    longest = max(rows.context for shape in (*FITTED, *HELD_OUT) for rows in shape)
    model = load_decoder(
        spec,
        Checkpoint(folder),
        choose(device, torch.float32, "int8" if is_int8 else None),
        device=device,
        dtype=torch.float32,
        max_model_len=longest,
    )
    runner = Runner(model, device=device, dtype=torch.float32, block_size=BLOCK_SIZE)
    runner.allocate(1 + max(sum(map(_blocks, shape)) for shape in (*FITTED, *HELD_OUT)))
    # As runtime.ops.cpu keeps them: bfloat16 as it is where our kernels can be built.
    exact = CPU_BF16 if spec.checkpoint_dtype == "bfloat16" and load_library() is not None else CPU_FP32
    return share_of(spec, CPU_INT8 if is_int8 else exact), runner


def measure(runner: Runner, shapes: list[Shape], repeats: int) -> list[Timed]:
    """All shapes in turn, `repeats` times after one to warm up: what disturbs the machine disturbs all alike."""
    from runtime.engine import scheduler, sequence
    from runtime.ipc import Sampling

    def rows_of(shape: Shape) -> list[scheduler.Row]:
        made: list[scheduler.Row] = []
        block = 1
        for rows in shape:
            for _ in range(rows.requests):
                request = sequence.Sequence(str(len(made)), [5] * rows.context, Sampling(1, temperature=0.0))
                count = -(-rows.context // BLOCK_SIZE)
                request.blocks = list(range(block, block + count))
                block += count
                made.append(scheduler.Row(request, rows.context - rows.count, rows.count, samples=True))
        return made

    steps = [rows_of(shape) for shape in shapes]
    times: list[list[float]] = [[] for _ in shapes]
    for repeat in range(repeats + 1):
        for rows, seconds in zip(steps, times, strict=True):
            begin = time.perf_counter()
            runner.step(rows)
            if repeat:
                seconds.append(time.perf_counter() - begin)
    return [
        Timed(" + ".join(map(str, shape)), sum((rows.step for rows in shape), NOTHING), statistics.median(seconds))
        for shape, seconds in zip(shapes, times, strict=True)
    ]


def serve_in_process(runner: Runner, load: Load, budget: int) -> Served:
    """The load on the engine's own scheduler and runner, step after step: no server, no HTTP, no tokenizer."""
    from runtime.engine.blocks import BlockPool
    from runtime.engine.scheduler import Scheduler
    from runtime.engine.sequence import Sequence
    from runtime.ipc import Sampling

    longest = load.prompt + load.output
    blocks = 1 + load.streams * -(-longest // BLOCK_SIZE)
    runner.allocate(blocks)
    scheduler = Scheduler(
        BlockPool(blocks, BLOCK_SIZE),
        max_model_len=longest,
        max_num_seqs=load.streams,
        max_batched_tokens=budget,
        prefix_cache=False,
    )
    numbers = random.Random(0)
    vocabulary = runner.model.spec.vocab_size
    first: dict[str, float] = {}
    ttfts: list[float] = []
    tpots: list[float] = []
    sent = steps = 0

    def send() -> None:
        nonlocal sent
        if sent < load.requests:
            prompt = [numbers.randrange(vocabulary) for _ in range(load.prompt)]
            seq = Sequence(str(sent), prompt, Sampling(load.output, temperature=0.0, ignore_eos=True))
            seq.arrived_at = time.perf_counter()
            scheduler.add(seq)
            sent += 1

    begin = time.perf_counter()
    for _ in range(load.streams):
        send()
    while scheduler.has_work:
        rows = scheduler.plan()
        scheduler.apply(rows, [sample.token for sample in runner.step(rows)])
        now, steps = time.perf_counter(), steps + 1
        for seq in [one.seq for one in rows if one.samples]:
            if seq.num_output == 1:
                first[seq.id] = now
                ttfts.append(now - seq.arrived_at)
            if seq.finish_reason(frozenset(), longest):
                tpots.append((now - first[seq.id]) / max(1, load.output - 1))
                scheduler.finish(seq)
                send()
    seconds = time.perf_counter() - begin
    return Served(load.requests * load.output / seconds, statistics.median(ttfts), statistics.median(tpots), steps)


def _blocks(rows: Rows) -> int:
    return rows.requests * -(-rows.context // BLOCK_SIZE)
