"""Units: the long-lived processes of one machine, and how anyone asks for them.

The supervisor (or systemd on a VM) owns the processes; the agent only ever talks to a `UnitManager`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol

from runtime.deployment import Struct

EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: a restart cannot help
RELEASE_MARK = "{release}"  # in a unit's argv: the folder of the current release, filled in at each start

State = Literal["stopped", "running", "stopping", "waiting", "failed"]


@dataclass(frozen=True, slots=True)
class UnitSpec:
    """What to run. `listens`: gets the listening socket. `stop_s`: seconds from SIGTERM to SIGKILL."""

    name: str
    argv: tuple[str, ...]
    autostart: bool = True
    listens: bool = False
    stop_s: float = 5.0

    @property
    def needs_release(self) -> bool:
        return RELEASE_MARK in self.argv


class UnitState(Struct, frozen=True):
    """A unit now. `waiting` = back-off before the next start; `failed` = not started again by itself."""

    name: str
    state: State
    pid: int | None = None
    release: str | None = None  # the release it was last started on
    exits: int = 0  # exits that nobody asked for, since the supervisor's start
    exit_code: int | None = None  # of the last such exit; -9 = killed by signal 9
    last_lines: tuple[str, ...] = ()  # newest last; what the latest process wrote


class UnitError(RuntimeError):
    """The manager refused or could not be reached; the text says why."""


class UnitManager(Protocol):
    """Start, stop and ask for units by name. Every call raises UnitError.

    `start` returns once the process is spawned (a unit that runs is left alone), `stop` once it is gone,
    `restart` once the new one is spawned. `replace` starts the next process beside the one that runs, and returns at
    once: `state` shows its pid when it has announced itself (runtime/handover.py); the one before then ends by itself.
    """

    def start(self, unit: str) -> None: ...

    def stop(self, unit: str) -> None: ...

    def restart(self, unit: str) -> None: ...

    def replace(self, unit: str) -> None: ...

    def state(self, unit: str) -> UnitState: ...


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Exponential back-off in seconds, and when a unit that keeps exiting is given up."""

    first_s: float = 0.2
    most_s: float = 5.0
    reset_after_s: float = 30.0
    loop_exits: int = 5
    loop_window_s: float = 60.0


class RestartHistory:
    """Exits of one unit within the policy's window, oldest first."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._exits: deque[float] = deque()
        self._delay_s = policy.first_s

    def delay_after_exit(self, now: float, ran_s: float) -> float | None:
        """Seconds to wait before the next start, or None for a crash loop. `now` is any monotonic clock."""
        policy = self._policy
        if ran_s >= policy.reset_after_s:
            self._delay_s = policy.first_s
        self._exits.append(now)
        while self._exits[0] < now - policy.loop_window_s:
            self._exits.popleft()
        if len(self._exits) >= policy.loop_exits:
            return None
        delay = self._delay_s
        self._delay_s = min(policy.most_s, delay * 2)
        return delay
