"""Phases `load` and `serve`: put a release behind the port, and see it through until it answers.

Server and engine always run on the release that `current` points to when they start.
"""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from runtime.agent.releases import Release, Releases
from runtime.agent.status import PhaseError, Progress, Report
from runtime.agent.units import EXIT_CONFIG, UnitManager, UnitState

PROBE_TIMEOUT_S = 2.0
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


def probe_health(
    host: str, port: int, certificate: bytes | None = None, timeout_s: float = PROBE_TIMEOUT_S
) -> Health | None:
    """Asks the server on this machine; None when it does not answer. `certificate` (DER): asks over TLS, and believes
    a server with exactly this one."""
    connection = _connection(LOOPBACK.get(host, host), port, certificate, timeout_s)
    try:
        connection.connect()
        if certificate is not None and _shown_by(connection) != certificate:
            return Health(error="the server shows another certificate than the one of this machine")
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


def _connection(host: str, port: int, certificate: bytes | None, timeout_s: float) -> http.client.HTTPConnection:
    if certificate is None:
        return http.client.HTTPConnection(host, port, timeout=timeout_s)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The certificate names the machine's addresses, not loopback's: it is compared as a whole instead.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)


def _shown_by(connection: http.client.HTTPConnection) -> bytes | None:
    return connection.sock.getpeercert(binary_form=True) if isinstance(connection.sock, ssl.SSLSocket) else None


class Door(Protocol):
    """How a release is reached on this machine; see `runtime.agent.machine.Machine`."""

    def open(self, release: Release) -> bool: ...

    def probe(self, release: Release) -> Health | None: ...


@dataclass(frozen=True, slots=True)
class Serving:
    """Server and engine as the agent sees them. `pause` waits some seconds and may raise to interrupt; `poll_s`:
    between two looks while something loads."""

    units: UnitManager
    releases: Releases
    door: Door
    pause: Callable[[float], None]
    poll_s: float
    no_progress_s: float

    def is_ready(self, release: Release) -> bool:
        """True when exactly this release answers now."""
        current = self.releases.current()
        if current is None or current.id != release.id:
            return False
        units = (self.units.state("server"), self.units.state("engine"))
        if any(unit.state != "running" or unit.release != release.id for unit in units):
            return False
        health = self.door.probe(release)
        return health is not None and health.ready

    def activate(self, release: Release) -> None:
        """Switches to `release` and has server and engine run on it. What does so already is left alone.

        The old server stops first (it drains, and new connections wait in the socket's backlog), so that the
        new one never meets the old engine.
        """
        reopened = self.door.open(release)
        self.releases.switch(release)
        stale = [name for name in ("server", "engine") if not _runs_on(self.units.state(name), release)]
        if reopened and "server" not in stale:
            stale.insert(0, "server")
        for name in stale:
            self.units.stop(name)
        for name in stale:
            self.units.start(name)

    def start_server(self) -> None:
        """For a machine whose server waits for its first release. One that runs is left alone."""
        current = self.releases.current()
        if current is not None and self.units.state("server").state == "stopped":
            self.door.open(current)
            self.units.start("server")

    def reopen(self, release: Release) -> None:
        """For a release that is ready already: its certificate may have been renewed."""
        if self.door.open(release):
            self.units.restart("server")

    def follow(self, release: Release, report: Report) -> None:
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
            health = self.door.probe(release)
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
            self.pause(self.poll_s)


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
