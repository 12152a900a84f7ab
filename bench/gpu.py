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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from bench.gpu_models import SHAPES, TINY_SHAPES
from bench.gpu_report import ModelResult, Report, SuiteRun, markdown
from bench.gpu_runs import LOAD, TINY_LOAD, EngineRun, GpuLimits, PeerRun, math_dtype
from bench.machine import describe_machine, our_versions
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
    clock = Clock(time.monotonic() + BUDGET_S)
    tests = [] if options.skip_tests else run_tests(clock)
    limits = run_part(clock, GpuLimits, "limits", options)
    shapes = TINY_SHAPES if options.tiny else SHAPES
    engines = [run_part(clock, EngineRun, "engine", options, "--shape", shape.name) for shape in shapes]
    # Last: should the time end, it is a peer that is missing.
    peers = [
        run_part(clock, PeerRun, "peer", options, "--shape", shape.name) if shape.name in PEER_SHAPES else None
        for shape in shapes
    ]
    report = Report(
        date=today(),
        command=command_line("bench.gpu", argv),
        machine=describe_machine(ROOT),
        versions=our_versions(),
        dtype=math_dtype(options.device),
        load=TINY_LOAD if options.tiny else LOAD,
        limits=limits if isinstance(limits, GpuLimits) else None,
        tests=tests,
        models=[
            ModelResult(
                shape=shape,
                engine=engine if isinstance(engine, EngineRun) else None,
                peer=peer if isinstance(peer, PeerRun) else None,
            )
            for shape, engine, peer in zip(shapes, engines, peers, strict=True)
        ],
        problems=[found for found in (limits, *engines, *peers) if isinstance(found, str)],
    )
    text = markdown(report)
    print(text)
    if not options.tiny:
        save(options.out, f"gpu-{report.date}", text, asdict(report))
    return int(bool(report.problems) or any(not test.passed for test in tests))


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes; prints the report and saves nothing")
    parser.add_argument("--skip-tests", action="store_true", help="only the measurements")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the report")
    return parser.parse_args(argv)


def run_tests(clock: Clock) -> list[SuiteRun]:
    """The kernels first, in several processes, because it is their compilation that takes time; then the rest."""
    workers = str(min(WORKERS, len(os.sched_getaffinity(0))))
    kernels, rest = ["tests/runtime/ops", "-n", workers], ["tests/runtime", "--ignore=tests/runtime/ops"]
    return [_run_tests(clock, name, words) for name, words in (("kernels", kernels), ("model and engine", rest))]


def _run_tests(clock: Clock, name: str, words: list[str]) -> SuiteRun:
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
    return msgspec.json.decode(done.stdout.strip().splitlines()[-1], type=kind)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
