"""The real engine process with two additions: it proves its block pool when idle, and signals break its next step.

The supervisor of the chaos machine starts it in place of `runtime.cli engine`, with the same arguments.

SIGUSR1: the next step raises, as a kernel would. SIGUSR2: the next step asks for more memory than there is.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from types import FrameType

import torch
from torch import Tensor

from runtime.cli import main
from runtime.engine.runner import Runner
from runtime.engine.scheduler import Row, Scheduler
from runtime.ipc import Stats
from runtime.ops.sampling import Drawn

MORE_THAN_THERE_IS = 2**46  # bytes
_wanted: list[signal.Signals] = []


class ProvingScheduler(Scheduler):
    """Idle, the pool must add up; `AssertionError` ends the process with 70, which the chaos program counts."""

    proven_at = -1

    def stats(self) -> Stats:
        if not self.has_work and self.proven_at != self.steps:
            self.check()
            assert self.pool.available == self.pool.capacity, "idle, and blocks are owned"
            self.proven_at = self.steps
        return super().stats()


class BreakableRunner(Runner):
    """Breaks when a signal has asked for it."""

    def launch(self, rows: list[Row], allowed: Mapping[str, Tensor] | None = None) -> Drawn:
        if _wanted:
            if _wanted.pop() is signal.SIGUSR2:
                torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8).fill_(1)
            raise RuntimeError("an exception in a kernel, made by the chaos program")
        return super().launch(rows, allowed)


def _note(number: int, _frame: FrameType | None) -> None:
    _wanted.append(signal.Signals(number))


def run() -> int:
    from runtime.engine import load
    from runtime.engine import main as engine

    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, _note)
    setattr(engine, "Scheduler", ProvingScheduler)  # noqa: B010
    setattr(load, "Runner", BreakableRunner)  # noqa: B010
    return main(["engine", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(run())
