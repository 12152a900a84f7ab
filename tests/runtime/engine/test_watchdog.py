"""The watchdog ends an engine that hangs in a step, and none that was stopped in one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from runtime.engine.exits import CRASHED

PROGRAM = """
import sys, time
from runtime.engine.loop import Watchdog
watchdog = Watchdog(float(sys.argv[1]))
with watchdog.step():
    print("in a step", flush=True)
    sys.stdin.readline()
print("stepped", flush=True)
sys.stdin.readline()
"""
FAILS = """
import time
from runtime.engine.loop import Watchdog
watchdog = Watchdog(0.2)
try:
    with watchdog.step():
        raise ValueError
except ValueError:
    time.sleep(1)
print("goes on")
"""


def engine(limit_s: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(limit_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in a step\n"
    return process


def test_a_step_without_an_end_ends_the_process_with_its_stack() -> None:
    process = engine(0.2)
    assert process.wait(timeout=60) == CRASHED
    _, said = process.communicate()
    assert "the engine hangs" in said
    assert 'File "<string>"' in said


def test_a_process_that_was_stopped_in_a_step_goes_on() -> None:
    limit_s = 4.0
    process = engine(limit_s)
    process.send_signal(signal.SIGSTOP)
    time.sleep(limit_s + 0.5)  # that time passes is what is tested
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate("\n\n", timeout=60)
    assert (process.returncode, said) == (0, "stepped\n")


def test_a_step_that_failed_does_not_hang() -> None:
    done = subprocess.run([sys.executable, "-c", FAILS], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "goes on\n")
