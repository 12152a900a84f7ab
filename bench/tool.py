"""How long the tool itself takes: `python -m bench.tool`: `deployctl --help`, and `status` of a local deployment.

The deployment is the demo model in a home of its own, which is taken down at the end. Nothing is saved.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.machine import describe_machine
from bench.output import ROOT, say
from bench.report import QUIET_LOAD
from bench.servers import BenchError, free_port, tail_of

DEPLOYCTL = (sys.executable, "-c", "from provision.cli import main; main()")
NAME = "bench-tool"
HELP_GOAL_S, STATUS_GOAL_S = 0.3, 0.5
UP_TIMEOUT_S = 600


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tool", description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args(argv)
    load = describe_machine(ROOT).load_before
    try:
        with tempfile.TemporaryDirectory(prefix="bench-tool-") as folder:
            times = measure(Path(folder), options.runs)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for command, seconds, goal in times:
        found = f"{statistics.median(seconds):.2f} s, median of {len(seconds)}"
        print(f"deployctl {command}: {found} ({min(seconds):.2f} to {max(seconds):.2f}); goal {goal} s")
    if load > QUIET_LOAD:
        print(f"Not a quiet machine: load average {load} before.")
    return 0


def measure(home: Path, runs: int) -> list[tuple[str, list[float], float]]:
    """(command, seconds of each run, goal). Raises BenchError when a command fails."""
    help_s = _times(lambda: run(home, "--help"), runs)
    say("bringing up the demo model")
    try:
        run(home, "up", NAME, "--model", "demo", "--port", str(free_port()), "--kv-cache-gib", "0.5", "--yes")
        status_s = _times(lambda: run(home, "status", NAME), runs)
    finally:
        run(home, "down", "--all")
    return [("--help", help_s, HELP_GOAL_S), ("status", status_s, STATUS_GOAL_S)]


def run(home: Path, *words: str) -> None:
    """One command of a user whose home is `home`; converted models are shared. Raises BenchError."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    paths = {"PYTHONPATH": str(ROOT), "HOME": str(home), "XDG_STATE_HOME": str(home / "state")}
    own = {"XDG_CACHE_HOME": cache, "XDG_RUNTIME_DIR": str(home), "NO_COLOR": "1"}
    done = subprocess.run(
        [*DEPLOYCTL, *words],
        env={**os.environ, **paths, **own},
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=UP_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"deployctl {' '.join(words)} ended with {done.returncode}:\n{tail_of(done.stderr)}")


def _times(work: Callable[[], None], runs: int) -> list[float]:
    work()  # the files are in the page cache from now on
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
