"""`python -m bench.step_model fit`: steps of the demo model on this CPU, rates that fit them, and what these predict.

The model runs in this process (runtime.engine.runner), without server and scheduler. Rates are fitted to decodes and
prefills (`FITTED`); steps of other shapes (`HELD_OUT`) show what the fit is worth. Then the load of `make bench`, 128
tokens in and 64 out, is predicted at each number of streams and set beside the newest measured servers.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.load import OUTPUT_TOKENS, PROMPT_TOKENS
from bench.machine import Machine, describe_machine
from bench.peer import default_folder
from bench.report import QUIET_LOAD, US
from bench.step_model import (
    CPU_BF16,
    CPU_FP32,
    CPU_INT8,
    NOTHING,
    Measured,
    Rates,
    Share,
    Step,
    fit,
    parts_of,
    row,
    share_of,
    squared_error,
)
from bench.step_serving import Load, Served, serve
from runtime.cli import is_busy

if TYPE_CHECKING:
    from runtime.engine.runner import Runner

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "benchmarks"
BLOCK_SIZE = 16
STREAMS = (1, 8, 32)
BUDGET_STEP_S, BUDGET_TOKENS = 1.0, 2048  # as the engine sizes a step on a CPU (runtime.engine.main)


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


@dataclass(frozen=True, slots=True)
class Server:
    """What `make bench` measured at one number of streams: medians; rates in tokens/s, times in seconds."""

    streams: int
    requests: int
    output_tokens_s: float
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """None where no server was measured."""

    predicted: Served
    measured: Server | None
    streams: int


@dataclass(frozen=True, slots=True)
class Result:
    """All that a run found; what its JSON file holds. `error`, `held_out_error`: root of the mean square of predicted ÷
    measured − 1."""

    date: str
    quantization: str
    machine: Machine
    rates: Rates
    error: float
    held_out_error: float
    fitted: list[Timed]
    held_out: list[Timed]
    measured_in: str | None
    measured_commit: str | None
    comparisons: list[Comparison]


def main(words: list[str]) -> int:
    options = parse(words)
    machine = describe_machine(ROOT)
    share, runner = load(options.model or _demo_model(), options.quantization)
    times = measure(runner, [*FITTED, *HELD_OUT], options.repeats)
    fitted, held_out = times[: len(FITTED)], times[len(FITTED) :]
    rates = fit(share, [Measured(one.step, one.seconds) for one in fitted])
    source = options.measured or newest_result()
    found = json.loads(source.read_text()) if source else {}
    servers = read_servers(found, options.quantization)
    result = Result(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        quantization=options.quantization,
        machine=machine,
        rates=rates,
        error=root_error(share, fitted, rates),
        held_out_error=root_error(share, held_out, rates),
        fitted=fitted,
        held_out=held_out,
        measured_in=source.name if source else None,
        measured_commit=found.get("machine", {}).get("commit"),
        comparisons=compare(share, rates, servers),
    )
    text = markdown(result, share)
    print(text, end="")
    if options.out:
        write(result, text, options.out)
    return 0


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.step_model fit", description=__doc__)
    parser.add_argument("--model", type=Path, help="converted model folder; default: the demo model, converted once")
    parser.add_argument("--quantization", choices=["none", "int8"], default="none", help="as in the spec")
    parser.add_argument("--repeats", type=int, default=7, help="of each shape; the median counts")
    parser.add_argument("--measured", type=Path, help="JSON file of `make bench`; default: the newest")
    parser.add_argument("--out", type=Path, help="folder for the result's two files; default: none is written")
    return parser.parse_args(words)


# ---- measured steps ----


def load(folder: Path, quantization: str) -> tuple[Share, Runner]:
    """The model as the engine would load it, and what its steps cost."""
    if is_busy(os.getloadavg()[0], len(os.sched_getaffinity(0))):
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the engine has it; read when torch is loaded
    import torch

    from runtime.engine.runner import Runner
    from runtime.model.basis import AS_TRAINED, Turned
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
        basis=Turned.of(spec.hidden_size) if is_int8 else AS_TRAINED,
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


def root_error(share: Share, times: list[Timed], rates: Rates) -> float:
    return math.sqrt(squared_error(share, [Measured(one.step, one.seconds) for one in times], rates))


def _blocks(rows: Rows) -> int:
    return rows.requests * -(-rows.context // BLOCK_SIZE)


def _demo_model() -> Path:
    folder = default_folder().parent / "demo-model"
    subprocess.run([sys.executable, "-m", "runtime.model.demo", str(folder)], stdout=sys.stderr, check=True, cwd=ROOT)
    return folder


# ---- beside measured servers ----


def newest_result() -> Path | None:
    """The newest result of `make bench` in docs/benchmarks."""
    return max(RESULTS.glob("*-*-*-cpu.json"), default=None)


def read_servers(found: dict[str, object], quantization: str) -> list[Server]:
    """Our endpoint's runs in a result of `make bench`: those in int8, or the others, by streams."""
    runs = found.get("runs", [])
    assert isinstance(runs, list)
    ours = [run for run in runs if US in run["endpoint"] and ("int8" in run["endpoint"]) == (quantization == "int8")]

    def median(streams: int, key: str) -> float:
        return statistics.median(float(run[key]) for run in ours if run["streams"] == streams)

    return [
        Server(
            streams=streams,
            requests=int(median(streams, "requests")),
            output_tokens_s=median(streams, "output_tokens_s"),
            ttft_s=median(streams, "ttft_ms") / 1e3,
            tpot_s=median(streams, "tpot_ms") / 1e3,
        )
        for streams in sorted({run["streams"] for run in ours})
    ]


def compare(share: Share, rates: Rates, servers: list[Server]) -> list[Comparison]:
    """Each level that was measured, else those of `make bench`."""
    measured = {server.streams: server for server in servers}
    found = []
    for streams in sorted(measured) or STREAMS:
        server = measured.get(streams)
        requests = server.requests if server else 2 * streams
        found.append(Comparison(predict(share, rates, streams, requests), server, streams))
    return found


def predict(share: Share, rates: Rates, streams: int, requests: int) -> Served:
    def seconds(step: Step) -> float:
        return parts_of(share, step, rates).seconds

    per_token = seconds(row(0, PROMPT_TOKENS)) / PROMPT_TOKENS
    budget = max(BLOCK_SIZE, min(BUDGET_TOKENS, int(BUDGET_STEP_S / per_token) // BLOCK_SIZE * BLOCK_SIZE))
    return serve(Load(streams, requests, PROMPT_TOKENS, OUTPUT_TOKENS), max(budget, streams), seconds)


# ---- the report ----


def markdown(result: Result, share: Share) -> str:
    rates, machine = result.rates, result.machine
    blend = "the larger of both" if math.isinf(rates.blend) else f"blended with p = {rates.blend:g}"
    noise = f"\n**Not a quiet machine** (load average {machine.load_before} before the run): a smoke test.\n"
    steps = [
        f"| {one.shape} | {1e3 * one.seconds:.1f} | {1e3 * parts_of(share, one.step, rates).seconds:.1f} |"
        for one in result.held_out
    ]
    source = f"`{result.measured_in}` at commit {result.measured_commit}" if result.measured_in else "none"
    lines = [
        f"# Step model on the CPU, {result.date}, quantization {result.quantization}",
        "" if machine.load_before <= QUIET_LOAD else noise,
        f"- Fitted to {len(result.fitted)} steps of the demo model: {rates.bytes_per_s / 1e9:.1f} GB/s, "
        f"{rates.flops_per_s / 1e9:.0f} GFLOP/s, {1e3 * rates.step_s:.2f} ms per step; memory and arithmetic {blend}.",
        f"- Error, root of the mean square: {100 * result.error:.0f} % of those steps, "
        f"{100 * result.held_out_error:.0f} % of the steps below, which were held out.",
        f"- Machine: {machine.cpu}, {machine.cores} cores; {machine.system}; commit {machine.commit}.",
        f"- Servers: {source}.",
        "",
        "| requests × tokens of context | measured ms | predicted ms |",
        "|---|---|---|",
        *steps,
        "",
        f"{PROMPT_TOKENS} tokens in, {OUTPUT_TOKENS} out, predicted / measured through the server:",
        "",
        "| streams | tok/s | ratio | TTFT ms | TPOT ms |",
        "|---|---|---|---|---|",
        *map(_row, result.comparisons),
    ]
    return "\n".join(lines) + "\n"


def _row(one: Comparison) -> str:
    said, seen = one.predicted, one.measured
    if seen is None:
        said_only = f"{said.output_tokens_s:.1f} / – | – | {1e3 * said.ttft_s:.0f} / – | {1e3 * said.tpot_s:.1f} / –"
        return f"| {one.streams} | {said_only} |"
    return (
        f"| {one.streams} | {said.output_tokens_s:.1f} / {seen.output_tokens_s:.1f} "
        f"| {said.output_tokens_s / seen.output_tokens_s:.2f} "
        f"| {1e3 * said.ttft_s:.0f} / {1e3 * seen.ttft_s:.0f} | {1e3 * said.tpot_s:.1f} / {1e3 * seen.tpot_s:.1f} |"
    )


def write(result: Result, text: str, folder: Path) -> None:
    name = f"{result.date}-step-model" + ("" if result.quantization == "none" else f"-{result.quantization}")
    held = dataclasses.asdict(result)
    held["rates"]["blend"] = None if math.isinf(result.rates.blend) else result.rates.blend  # JSON has no infinity
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(held, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text)
    print(f"written: {folder / name}.md and .json", file=sys.stderr)
