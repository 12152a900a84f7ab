"""What is broken on purpose, when, and how long it takes until the endpoint is well again."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.chaos.machine import Machine

LEAD = 120  # requests
APART_S = 16.0  # five exits within a minute would be a crash loop
BACK_S = 180.0  # a loaded machine needs a while to start python and torch
KILL_DEADLINE_S = 5.0  # for an open stream to end after the death of the engine; 1 s on a quiet machine
HANG_DEADLINE_S = 11.0  # max(5 s, 4 steps) is a hang, and the machine is loaded
PAUSE_S = 8.0

Unit = Literal["engine", "server"]


@dataclass(frozen=True, slots=True)
class Fault:
    """`deadline_s`: by when requests that were open must have ended, None where they may go on."""

    name: str
    unit: Unit
    number: signal.Signals
    ends: bool = True
    resumes: bool = False  # SIGCONT follows after PAUSE_S
    deadline_s: float | None = KILL_DEADLINE_S


FAULTS = (
    Fault("kill -9 of the engine", "engine", signal.SIGKILL),
    Fault("an exception in a step", "engine", signal.SIGUSR1, deadline_s=None),
    Fault("out of memory in a step", "engine", signal.SIGUSR2, deadline_s=None),
    # The agent stops a unit that hangs, which is no exit of its own.
    Fault("SIGSTOP of the engine", "engine", signal.SIGSTOP, ends=False, deadline_s=HANG_DEADLINE_S),
    # Its own watchdog may end it when it goes on inside a step that took too long.
    Fault("the engine pauses for 8 s", "engine", signal.SIGSTOP, ends=False, resumes=True, deadline_s=HANG_DEADLINE_S),
    Fault("kill -9 of the server", "server", signal.SIGKILL),
    Fault("SIGTERM of the server", "server", signal.SIGTERM, deadline_s=None),
)


@dataclass(slots=True)
class Window:
    """One fault from its signal until /health was 200 again. Times are seconds of `time.monotonic()`."""

    fault: Fault
    at_number: int
    began: float = 0.0
    unready_after_s: float | None = None
    ready_after_s: float | None = None
    open_requests: int = 0
    longest_s: float = 0.0  # until the last request that was open then had ended, of those that failed

    def touches(self, started: float, ended: float) -> bool:
        over = self.began + self.ready_after_s if self.ready_after_s is not None else float("inf")
        return self.began > 0 and self.began <= ended and started <= over + 1.0


def schedule(seed: int, numbers: int, count: int) -> list[Window]:
    """`count` faults, evenly over `numbers` requests, in an order of their own for each seed; each kind in turn."""
    rng = random.Random(f"{seed}/faults")
    order: list[Fault] = []
    while len(order) < count:
        order += rng.sample(FAULTS, len(FAULTS))
    return [Window(fault, (at + 1) * numbers // (count + 1)) for at, fault in enumerate(order[:count])]


class Gate:
    """Lets requests pass up to the next fault, so that each fault happens at its number and in the middle of others.

    numbers: ……│at_number ── LEAD ──│……
               ^ held here until the fault is due; it happens half way
    """

    def __init__(self, windows: Sequence[Window]) -> None:
        self._windows = windows
        self._changed = asyncio.Condition()
        self._next = 0  # the fault that has not happened yet
        self._lead = 0
        self._highest = -1
        self._closed = False

    async def enter(self, number: int) -> None:
        async with self._changed:
            self._highest = max(self._highest, number)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: number <= self._limit())

    async def crowded(self, window: Window) -> bool:
        """The fault is due: waits until others are under way around its number. False: no more will come."""
        async with self._changed:
            self._lead = LEAD
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._closed or self._highest >= window.at_number + LEAD // 2)
            return not self._closed

    async def happened(self) -> None:
        async with self._changed:
            self._next += 1
            self._lead = 0
            self._changed.notify_all()

    async def close(self) -> None:
        """The last request has ended."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _limit(self) -> float:
        return self._windows[self._next].at_number + self._lead if self._next < len(self._windows) else float("inf")


async def strike(machine: Machine, gate: Gate, windows: Sequence[Window], open_now: Callable[[], int]) -> None:
    """All faults in order. Raises TimeoutError when the endpoint does not come back."""
    for window in windows:
        if not await gate.crowded(window):
            return
        fault = window.fault
        before = await asyncio.to_thread(machine.pid, fault.unit)
        window.open_requests = open_now()
        window.began = time.monotonic()
        await asyncio.to_thread(machine.signal, fault.unit, fault.number, ends=fault.ends, may_end=fault.resumes)
        await gate.happened()
        await _until_well(machine, window, before)
        await asyncio.sleep(max(0.0, APART_S - (time.monotonic() - window.began)))


async def _until_well(machine: Machine, window: Window, before: int | None) -> None:
    """Ready again by itself, with another process where the old one had to end."""
    fault, resumed = window.fault, False
    while (passed := time.monotonic() - window.began) < BACK_S:
        if fault.resumes and not resumed and passed > PAUSE_S:
            resumed = True
            await asyncio.to_thread(machine.signal, fault.unit, signal.SIGCONT, ends=False)
        ready = await asyncio.to_thread(machine.is_ready)
        pid = await asyncio.to_thread(machine.pid, fault.unit)
        passed = time.monotonic() - window.began
        if not ready and window.unready_after_s is None:
            window.unready_after_s = passed
        if ready and (resumed if fault.resumes else pid not in (None, before)):
            window.ready_after_s = passed
            return
        await asyncio.sleep(0.1)
    raise TimeoutError(f"{fault.name}: not ready again within {BACK_S:g} s")
