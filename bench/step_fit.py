"""`python -m bench.step_model fit`: steps of the demo model on this CPU, rates that fit them, and what these predict.

Rates are fitted to decodes and prefills (`FITTED`); steps of other shapes (`HELD_OUT`) show what the fit is worth. Then
the load of `make bench`, 128 tokens in and 64 out, is predicted at each number of streams, and set beside the engine's
scheduler and runner in this process, and beside the newest measured servers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.demo_model import demo_model
from bench.load import OUTPUT_TOKENS, PROMPT_TOKENS, requests_for
from bench.machine import Machine, describe_machine
from bench.output import RESULTS, ROOT, save, today
from bench.report import QUIET_LOAD, US
from bench.step_cpu import BLOCK_SIZE, FITTED, HELD_OUT, Timed, load_model, measure, serve_in_process
from bench.step_model import Measured, Rates, Share, Step, fit, parts_of, row, squared_error
from bench.step_serving import Load, Served, serve

BUDGET_STEP_S, BUDGET_TOKENS = 1.0, 2048  # as the engine sizes a step on a CPU (runtime.engine.main)


@dataclass(frozen=True, slots=True)
class Server:
    """What `make bench` measured at one number of streams: medians; rates in tokens/s, times in seconds."""

    requests: int
    output_tokens_s: float
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One level of load. `engine` ran in process; `server` is None where none was measured."""

    load: Load
    predicted: Served
    engine: Served
    server: Server | None


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
    share, runner = load_model(options.model or demo_model(), options.quantization)
    times = measure(runner, [*FITTED, *HELD_OUT], options.repeats)
    fitted, held_out = times[: len(FITTED)], times[len(FITTED) :]
    rates = fit(share, [Measured(one.step, one.seconds) for one in fitted])
    source = options.measured or newest_result()
    found = json.loads(source.read_text()) if source else {}
    servers = read_servers(found, options.quantization)
    result = Result(
        date=today(),
        quantization=options.quantization,
        machine=machine,
        rates=rates,
        error=root_error(share, fitted, rates),
        held_out_error=root_error(share, held_out, rates),
        fitted=fitted,
        held_out=held_out,
        measured_in=source.name if source else None,
        measured_commit=found.get("machine", {}).get("commit"),
        comparisons=[
            Comparison(
                load := load_of(streams, servers.get(streams)),
                predict(share, rates, load),
                serve_in_process(runner, load, budget_of(share, rates, streams)),
                servers.get(streams),
            )
            for streams in options.streams
        ],
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
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32], help="levels of concurrency")
    parser.add_argument("--measured", type=Path, help="JSON file of `make bench`; default: the newest")
    parser.add_argument("--out", type=Path, help="folder for the result's two files; default: none is written")
    return parser.parse_args(words)


def root_error(share: Share, times: list[Timed], rates: Rates) -> float:
    return math.sqrt(squared_error(share, [Measured(one.step, one.seconds) for one in times], rates))


# ---- beside measured servers ----


def newest_result() -> Path | None:
    """The newest result of `make bench` in docs/benchmarks."""
    return max(RESULTS.glob("*-*-*-cpu.json"), default=None)


def read_servers(found: dict[str, object], quantization: str) -> dict[int, Server]:
    """Our endpoint's runs in a result of `make bench`, those in int8 or the others, by their number of streams."""
    runs = found.get("runs", [])
    assert isinstance(runs, list)
    ours = [run for run in runs if US in run["endpoint"] and ("int8" in run["endpoint"]) == (quantization == "int8")]

    def median(streams: int, key: str) -> float:
        return statistics.median(float(run[key]) for run in ours if run["streams"] == streams)

    return {
        streams: Server(
            requests=int(median(streams, "requests")),
            output_tokens_s=median(streams, "output_tokens_s"),
            ttft_s=median(streams, "ttft_ms") / 1e3,
            tpot_s=median(streams, "tpot_ms") / 1e3,
        )
        for streams in {run["streams"] for run in ours}
    }


def load_of(streams: int, server: Server | None) -> Load:
    """As many requests as the server was asked, else as `make bench` asks."""
    return Load(streams, server.requests if server else requests_for(streams), PROMPT_TOKENS, OUTPUT_TOKENS)


def budget_of(share: Share, rates: Rates, streams: int) -> int:
    """Tokens of a step, as the engine sizes it from the time of a prompt (runtime.engine.main)."""
    per_token = parts_of(share, row(0, PROMPT_TOKENS), rates).seconds / PROMPT_TOKENS
    return max(streams, BLOCK_SIZE, min(BUDGET_TOKENS, int(BUDGET_STEP_S / per_token) // BLOCK_SIZE * BLOCK_SIZE))


def predict(share: Share, rates: Rates, load: Load) -> Served:
    def seconds(step: Step) -> float:
        return parts_of(share, step, rates).seconds

    return serve(load, budget_of(share, rates, load.streams), seconds)


# ---- the report ----


def markdown(result: Result, share: Share) -> str:
    rates, machine = result.rates, result.machine
    blend = "the larger of both" if math.isinf(rates.blend) else f"blended with p = {rates.blend:g}"
    noise = f"\n**Not a quiet machine** (load average {machine.load_before} before the run): a smoke test.\n"
    steps = [
        f"| {one.shape} | {1e3 * one.seconds:.1f} | {1e3 * parts_of(share, one.step, rates).seconds:.1f} |"
        for one in result.held_out
    ]
    source = f"`{result.measured_in}` at commit {result.measured_commit or 'unknown'}" if result.measured_in else "none"
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
        f"{PROMPT_TOKENS} tokens in, {OUTPUT_TOKENS} out: predicted / engine in process / through the server.",
        "",
        "| streams | tok/s | predicted ÷ engine | predicted ÷ server | TTFT ms | TPOT ms |",
        "|---|---|---|---|---|---|",
        *map(_row, result.comparisons),
    ]
    return "\n".join(lines) + "\n"


def _row(one: Comparison) -> str:
    found = (one.predicted, one.engine, one.server)

    def cell(value: Callable[[Served | Server], float], form: str) -> str:
        return " / ".join("–" if each is None else format(value(each), form) for each in found)

    def ratio(other: Served | Server | None) -> str:
        return "–" if other is None else f"{one.predicted.output_tokens_s / other.output_tokens_s:.2f}"

    cells = (
        str(one.load.streams),
        cell(lambda each: each.output_tokens_s, ".1f"),
        ratio(one.engine),
        ratio(one.server),
        cell(lambda each: 1e3 * each.ttft_s, ".0f"),
        cell(lambda each: 1e3 * each.tpot_s, ".1f"),
    )
    return f"| {' | '.join(cells)} |"


def write(result: Result, text: str, folder: Path) -> None:
    name = f"{result.date}-step-model" + ("" if result.quantization == "none" else f"-{result.quantization}")
    held = dataclasses.asdict(result)
    held["rates"]["blend"] = None if math.isinf(result.rates.blend) else result.rates.blend  # JSON has no infinity
    save(folder, name, text, held)
