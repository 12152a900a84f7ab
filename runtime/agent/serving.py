"""Phases `load` and `serve`: put a release behind the port, and see it through until it answers.

Server and engine always run on the release that `current` points to; the supervisor fills it in at each
start.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from runtime.agent.releases import Release, Releases
from runtime.agent.status import PhaseError, Progress, Report
from runtime.agent.units import EXIT_CONFIG, UnitManager, UnitState

PROBE_TIMEOUT_S = 2.0
POLL_S = 0.1
LOAD_EXITS = 5  # exits of the engine during one load; slow crash loops escape the supervisor's 60 s window
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_SEPARATOR = " | hint: "


class Health(msgspec.Struct, frozen=True):
    """The answer of GET /health: the five fields of the 503 body. `ready` is told by the HTTP status."""

    ready: bool = False
    phase: str | None = None
    percent: float | None = None
    eta_s: float | None = None
    error: str | None = None
    hint: str | None = None


def probe_health(host: str, port: int, timeout_s: float = PROBE_TIMEOUT_S) -> Health | None:
    """Asks the server on this machine; None when it does not answer."""
    connection = http.client.HTTPConnection(LOOPBACK.get(host, host), port, timeout=timeout_s)
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    if response.status == 200:
        return Health(ready=True)
    try:
        return msgspec.structs.replace(msgspec.json.decode(body, type=Health), ready=False)
    except msgspec.DecodeError:
        return Health(error=f"/health answers {response.status}")


@dataclass(frozen=True, slots=True)
class Serving:
    """Server and engine as the agent sees them. `pause` waits some seconds and may raise to interrupt."""

    units: UnitManager
    releases: Releases
    host: str
    port: int
    pause: Callable[[float], None]
    no_progress_s: float = 300.0

    def is_ready(self, release: Release) -> bool:
        """True when exactly this release answers now."""
        current = self.releases.current()
        if current is None or current.id != release.id:
            return False
        units = (self.units.state("server"), self.units.state("engine"))
        if any(unit.state != "running" or unit.release != release.id for unit in units):
            return False
        health = probe_health(self.host, self.port)
        return health is not None and health.ready

    def activate(self, release: Release) -> None:
        """Switches to `release` and has server and engine run on it. What does so already is left alone.

        The old server stops first (it drains, and new connections wait in the socket's backlog), so that the
        new one never meets the old engine.
        """
        self.releases.switch(release)
        stale = [name for name in ("server", "engine") if not _runs_on(self.units.state(name), release)]
        for name in stale:
            self.units.stop(name)
        for name in stale:
            self.units.start(name)

    def start_server(self) -> None:
        """For a machine that had no release when the supervisor began. A server that runs is left alone."""
        if self.units.state("server").state == "stopped":
            self.units.start("server")

    def follow(self, report: Report) -> None:
        """Waits until /health says ready. Raises PhaseError when that cannot be hoped for any more."""
        exits_before = self.units.state("engine").exits
        moved_at, seen = time.monotonic(), None
        while True:
            engine, server = self.units.state("engine"), self.units.state("server")
            for unit in (engine, server):
                if unit.state == "failed":
                    raise failure_of(unit)
            if engine.exits - exits_before >= LOAD_EXITS:
                self.units.stop("engine")
                raise failure_of(engine)
            health = probe_health(self.host, self.port)
            if health is not None and health.ready and engine.state == "running":
                return
            now_seen = (health, engine.pid, server.pid)
            if now_seen != seen:
                moved_at, seen = time.monotonic(), now_seen
            elif time.monotonic() - moved_at > self.no_progress_s:
                said = health.error if health is not None and health.error else "nothing"
                raise PhaseError(
                    f"no progress for {self.no_progress_s:g} s while loading; /health reports: {said}",
                    "see `deployctl logs engine`",
                    retry=False,
                )
            report(Progress() if health is None else Progress(health.percent, None, health.eta_s))
            self.pause(POLL_S)


def failure_of(unit: UnitState) -> PhaseError:
    """Why a unit is given up, from its exit code and the last line that it wrote."""
    last = unit.last_lines[-1] if unit.last_lines else "it wrote nothing"
    error, _, hint = last.removeprefix("error: ").partition(_SEPARATOR)
    if unit.exit_code == EXIT_CONFIG:
        return PhaseError(f"{unit.name}: {error}", hint or f"see `deployctl logs {unit.name}`", retry=False)
    code = unit.exit_code or 0
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    return PhaseError(
        f"{unit.name} keeps ending ({ended}); its last line: {error}",
        hint or f"see `deployctl logs {unit.name}`, then `deployctl redeploy`",
        retry=False,
    )


def _runs_on(unit: UnitState, release: Release) -> bool:
    return unit.release == release.id and unit.state in ("running", "waiting")
