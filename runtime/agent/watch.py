"""Keeps the status true, and the engine alive, while nothing new is asked for."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from runtime.agent.idle import IdleClock, IdleStop
from runtime.agent.machine import Machine
from runtime.agent.releases import Release
from runtime.agent.serving import LOAD_EXITS, Health, failure_of
from runtime.agent.status import Progress, StatusBoard
from runtime.agent.units import UnitState
from runtime.mailbox import Current, Mailbox


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. `probe_s`: between two looks at /health while all is well. `hang_s`: not ready and nothing moves, though
    the engine runs: it is restarted. `silent_s`: the same once it has loaded; the server has waited for a step by then.
    """

    probe_s: float = 2.0
    hang_s: float = 120.0
    silent_s: float = 10.0


@dataclass(slots=True)
class Settled:
    """What the agent is done with. `serving` is None when a first release has failed."""

    wanted: Current
    serving: Release | None
    error: str | None = None
    hint: str | None = None
    retry_at: float | None = None  # time.monotonic()
    moved_at: float = field(default_factory=time.monotonic)
    seen: object = None
    server_exits: int = 0  # when it was seen ready
    held_s: float | None = None


class Watch:
    """`look` often. `begin` once for each release that has become ready."""

    def __init__(self, machine: Machine, mailbox: Mailbox, board: StatusBoard, patience: Patience) -> None:
        self._machine = machine
        self._units = machine.units
        self._board = board
        self._patience = patience
        self._idle = IdleStop(IdleClock(machine.run_dir, machine.state), mailbox, board, machine.switch_off)
        self._probed_at = 0.0

    def begin(self, release: Release) -> None:
        self._idle.begin(release)

    def look(self, settled: Settled) -> None:
        """Raises UnitError."""
        release = settled.serving
        if release is None:
            self._board.repeat()
            return
        if self._idle.is_ending:
            return
        units = (self._units.state("engine"), self._units.state("server"))
        for unit in units:
            if unit.state == "failed":
                self._post_failure(release, unit)
                return
            if unit.state == "stopped":
                self._units.start(unit.name)
        now = time.monotonic()
        steady = tuple(unit.pid for unit in units) == settled.seen
        if steady and now - self._probed_at < self._patience.probe_s:
            return
        self._probed_at = now
        health = self._machine.probe(release)
        if health is not None and health.ready and all(unit.state == "running" for unit in units):
            self._post_ready(settled, release, units, now)
        elif units[1].exits - settled.server_exits >= LOAD_EXITS:
            self._post_failure(release, units[1])  # it is started again for ever: the port stays open
        else:
            self._post_load(settled, release, units, health, now)

    def _post_failure(self, release: Release, unit: UnitState) -> None:
        error = failure_of(unit)
        self._board.post(release.id, "load", error=error.error, hint=error.hint)

    def _post_ready(self, settled: Settled, release: Release, units: tuple[UnitState, ...], now: float) -> None:
        settled.seen, settled.moved_at = tuple(unit.pid for unit in units), now
        settled.server_exits = units[1].exits
        if self._idle.is_over(release):
            return
        hint = "; ".join(text for text in (settled.hint, self._idle.warning) if text) or None
        done = Progress(percent=100.0)
        self._board.post(release.id, "ready", done, error=settled.error, hint=hint, held_s=settled.held_s)

    def _post_load(
        self, settled: Settled, release: Release, units: tuple[UnitState, ...], health: Health | None, now: float
    ) -> None:
        """Restarts an engine that hangs."""
        # Not what it says: "no step for 8 s" is no progress after "no step for 6 s".
        seen = (tuple(unit.pid for unit in units), None if health is None else (health.phase, health.percent))
        has_loaded = health is not None and health.phase == "serve"
        patience_s = self._patience.silent_s if has_loaded else self._patience.hang_s
        if seen != settled.seen:
            settled.seen, settled.moved_at = seen, now
        elif now - settled.moved_at > patience_s:
            print(
                f"not ready and nothing moves for {patience_s:g} s: restart of the engine", file=sys.stderr, flush=True
            )
            settled.moved_at = now
            self._units.restart("engine")
        progress = Progress() if health is None else Progress(health.percent, None, health.eta_s)
        self._board.post(release.id, "load", progress)
