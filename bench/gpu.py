"""`python -m bench.gpu`: tests, limits, engine and peer on one GPU in under nine minutes; ends in a report.

Each part is a process of its own: it has the GPU's memory for itself, and one that fails or hangs costs no other.
`--device cpu --tiny` runs every part on small shapes, to see that it works; the numbers then mean nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from bench.gpu_models import SHAPES, TINY_SHAPES
from bench.gpu_report import ModelResult, Report, SuiteRun, markdown
from bench.gpu_runs import LOAD, TINY_LOAD, EngineRun, GpuLimits, PeerRun, math_dtype
from bench.machine import describe_machine, installed_versions
from bench.output import RESULTS, ROOT, command_line, save, say, today

BUDGET_S = 510.0  # of all parts; what does not fit any more is left out, and the report says so
TESTS_S = 120.0
PART_S = 120.0
WORKERS = 8  # processes that compile kernels side by side
Found = TypeVar("Found", GpuLimits, EngineRun, PeerRun)
PEER_SHAPES = ("Qwen2.5-7B", "Qwen3-8B", "tiny")


@dataclass(slots=True)
class Clock:
    """What is left of the time for everything."""

    ends: float  # time.monotonic()

    def allowance(self, most: float) -> float:
        """Seconds that a part may take."""
        return min(most, self.ends - time.monotonic())


def main(argv: list[str]) -> int:
    options = parse(argv)
    empty = Report(
        date=today(),
        command=command_line("bench.gpu", argv),
        machine=describe_machine(ROOT),
        versions=installed_versions("torch", "triton", "transformers"),
        dtype=math_dtype(options.device),
        load=TINY_LOAD if options.tiny else LOAD,
        limits=None,
        tests=[],
        models=[ModelResult(shape, None, None) for shape in (TINY_SHAPES if options.tiny else SHAPES)],
        problems=[],
    )
    report = empty
    for report in measure(empty, Clock(time.monotonic() + BUDGET_S), options):
        if not options.tiny:  # after each part: the machine may be taken away
            save(options.out, f"gpu-{report.date}", markdown(report), asdict(report))
    print(markdown(report))
    return int(bool(report.problems) or any(not test.passed for test in report.tests))


def measure(report: Report, clock: Clock, options: argparse.Namespace) -> Iterator[Report]:
    """The report after each part."""
    if not options.skip_tests:
        # The kernels first, in several processes, because it is their compilation that takes time.
        workers = str(min(WORKERS, len(os.sched_getaffinity(0))))
        for name, words in (
            ("kernels", ["tests/runtime/ops", "-n", workers]),
            ("model and engine", ["tests/runtime/model", "tests/runtime/engine"]),
        ):
            yield (report := replace(report, tests=[*report.tests, run_tests(clock, name, words)]))
    yield (report := add(report, run_part(clock, GpuLimits, "limits", options)))
    names = [result.shape.name for result in report.models]
    for index, name in enumerate(names):
        yield (report := add(report, run_part(clock, EngineRun, "engine", options, "--shape", name), index))
    # Last: should the time end, it is a peer that is missing.
    for index, name in enumerate(names):
        if name in PEER_SHAPES:
            yield (report := add(report, run_part(clock, PeerRun, "peer", options, "--shape", name), index))


def add(report: Report, found: GpuLimits | EngineRun | PeerRun | str, index: int = 0) -> Report:
    """The report with what a part has found, or why it found nothing. `index`: of the model."""
    models = list(report.models)
    match found:
        case str():
            return replace(report, problems=[*report.problems, found])
        case GpuLimits():
            return replace(report, limits=found)
        case EngineRun():
            models[index] = replace(models[index], engine=found)
        case PeerRun():
            models[index] = replace(models[index], peer=found)
    return replace(report, models=models)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes; prints the report and saves nothing")
    parser.add_argument("--skip-tests", action="store_true", help="only the measurements")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the report")
    return parser.parse_args(argv)


def run_tests(clock: Clock, name: str, words: list[str]) -> SuiteRun:
    say(f"tests: {name}")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", *words]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=max(1.0, clock.allowance(TESTS_S)),
        )
    except subprocess.TimeoutExpired:
        return SuiteRun(name, passed=False, summary="not finished in time")
    if done.returncode:
        say(done.stdout[-6000:])
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return SuiteRun(name, passed=done.returncode == 0, summary="; ".join([*lines[-1:], *failed[:5]]))


def run_part(clock: Clock, kind: type[Found], part: str, options: argparse.Namespace, *words: str) -> Found | str:
    """What the part found, or why it found nothing."""
    title = " ".join((part, *words[1:]))
    allowed = clock.allowance(PART_S)
    if allowed <= 0:
        return f"{title}: not run, no time was left"
    say(title)
    command = [sys.executable, "-m", "bench.gpu_runs", part, *words, "--device", options.device]
    command += ["--began", str(time.monotonic()), *(["--tiny"] if options.tiny else [])]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=allowed)
    except subprocess.TimeoutExpired:
        return f"{title}: not finished after {allowed:.0f} s"
    if done.returncode:
        say(done.stderr[-3000:])
        return f"{title}: {(done.stderr.strip().splitlines() or ['ended without a word'])[-1]}"
    try:
        return msgspec.json.decode(done.stdout.strip().rpartition("\n")[2], type=kind)
    except msgspec.DecodeError as error:
        return f"{title}: what it printed is no result: {error}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
