"""Phases `load` and `serve`: put a release behind the port, and see it through until it answers.

Server and engine always run on the release that `current` points to when they start. Where a release serves already,
the next one takes over as runtime/handover.py shows: new requests wait, those that run come to their end.
"""

from __future__ import annotations

import http.client
import signal
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from runtime.agent.fingerprint import Fingerprints
from runtime.agent.releases import Release, Releases
from runtime.agent.status import PhaseError, Progress, Report
from runtime.agent.takeover import Takeover
from runtime.agent.units import EXIT_CONFIG, UnitManager, UnitState
from runtime.handover import ProcessId

PROBE_TIMEOUT_S = 2.0
LOAD_EXITS = 5  # exits of the engine during one load; slow crash loops escape the supervisor's 60 s window
TAKE_OVER_S = 60.0  # until a new server must accept
DRAIN_MARGIN_S = 10.0  # beyond `drain_max_s`, until the old server is killed
PROBE_S = 180.0  # until the engine must have answered its first question
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

    @property
    def loaded(self) -> bool:
        """The engine takes requests, whether or not the server lets them through already."""
        return self.ready or (self.phase == "serve" and self.error is None)


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
    between two looks while something loads. All that waits raises what `report` and `pause` raise."""

    units: UnitManager
    releases: Releases
    door: Door
    takeover: Takeover
    fingerprints: Fingerprints
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

    def activate(self, release: Release, report: Report) -> None:
        """Switches to `release` and has server and engine run on it. What does so already is left alone.

        The engine is replaced when the old server has ended, so that no request that runs loses it. Raises PhaseError.
        """
        reopened = self.door.open(release)
        before = self.releases.current()
        accepts = before is None or before.id == release.id or self._accepts(before, report)
        server, engine = self.units.state("server"), self.units.state("engine")
        old = ProcessId.of(server.pid) if server.state == "running" and server.pid is not None else None
        follows, stale = reopened or not _runs_on(server, release), not _runs_on(engine, release)
        if (follows or stale) and old is not None and self._has_served():
            self.takeover.begin(release.id, old if follows else None)
        elif not (follows or stale) and (found := self.takeover.read()) and found.release != release.id:
            self.takeover.end()
        self.releases.switch(release)
        drain_s = (before or release).deployment.drain_max_s
        if old is None or reopened or (follows and not accepts):
            self.units.restart("server") if follows else None
            self.takeover.began()
        elif follows:
            self._replace_server(server, old, report)
            self.takeover.began()
        self._wait_for_end(self._predecessor(release), drain_s, report)
        if stale:
            self.units.stop("engine")
            self.units.start("engine")

    def _accepts(self, release: Release, report: Report) -> bool:
        """Waits for a server that has only just been started: it would read another release's files, and the signal to
        start the next one would end it."""
        deadline = time.monotonic() + TAKE_OVER_S
        while self.door.probe(release) is None:
            if self.units.state("server").state != "running" or time.monotonic() > deadline:
                return False
            report(Progress())
            self.pause(self.poll_s)
        return True

    def _has_served(self) -> bool:
        """Without a release that has ever been ready, nobody expects an answer: 503 and the phase say more."""
        return self.releases.last_proven(besides="") is not None

    def _predecessor(self, release: Release) -> ProcessId | None:
        """The server that still has requests; this agent may have been started after it was told to go."""
        found = self.takeover.read()
        return ProcessId.parse(found.predecessor or "") if found is not None and found.release == release.id else None

    def _replace_server(self, server: UnitState, old: ProcessId, report: Report) -> None:
        """Returns when the new server accepts. Until then the old one does. Raises PhaseError."""
        late = PhaseError(
            f"the new server does not accept after {TAKE_OVER_S:g} s", "see `deployctl logs server`", retry=False
        )
        self.units.replace("server")
        deadline = time.monotonic() + TAKE_OVER_S
        while True:
            now = self.units.state("server")
            if now.pid is not None and now.pid != old.pid:
                return
            if now.exits > server.exits:
                raise failure_of(now)
            self._wait_a_little(deadline, late, report)

    def _wait_for_end(self, old: ProcessId | None, drain_s: float, report: Report) -> None:
        """The old server ends by itself; one that does not is killed: everybody waits for it."""
        deadline = time.monotonic() + drain_s + DRAIN_MARGIN_S
        while old is not None and old.is_alive:
            if time.monotonic() > deadline:
                old.send(signal.SIGKILL)
            report(Progress())
            self.pause(self.poll_s)

    def _wait_a_little(self, deadline: float, late: PhaseError, report: Report) -> None:
        """Until the next look. Raises `late` after `deadline`, seconds of the monotonic clock."""
        if time.monotonic() > deadline:
            raise late
        report(Progress())
        self.pause(self.poll_s)

    def start_server(self) -> None:
        """For a machine whose server waits for its first release. One that runs is left alone."""
        current = self.releases.current()
        if current is not None and self.units.state("server").state == "stopped":
            self.door.open(current)
            self.units.start("server")

    def start_engine(self) -> None:
        """For a release that has served before. One that runs is left alone."""
        if self.units.state("engine").state == "stopped":
            self.units.start("engine")

    def reopen(self, release: Release, report: Report) -> None:
        """For a release that is ready already: its certificate may have been renewed. Raises PhaseError."""
        self.activate(release, report)
        self.follow(release, report)
        self.takeover.end()

    def verify(self, release: Release, report: Report) -> str | None:
        """Has the engine answer one question before anybody else asks. Returns a warning when the answer is another one
        than the model's first. Raises PhaseError when it is none, as with NaN."""
        late = PhaseError(
            f"the engine is ready, but gave no answer within {PROBE_S:g} s", "see `deployctl logs engine`", retry=False
        )
        exits_before = self.units.state("engine").exits
        probe = self.takeover.ask(release.id)
        deadline = time.monotonic() + PROBE_S
        while (answer := self.takeover.answer(probe)) is None:
            if (engine := self.units.state("engine")).exits > exits_before:
                died = failure_of(engine)
                raise PhaseError(died.error, died.hint)  # once proves nothing: a first release is tried again
            self._wait_a_little(deadline, late, report)
        if answer.error is not None or not answer.tokens:
            why = answer.error or "it is empty"
            raise PhaseError(f"the model's first answer is none: {why}", "see `deployctl logs engine`", retry=False)
        return self.fingerprints.compare(release.deployment, release.weights(), answer.tokens)

    def follow(self, release: Release, report: Report, *, loaded: bool = False) -> None:
        """Waits until /health says ready, or `loaded`. Raises PhaseError when that cannot be hoped for any more."""
        exits_before = {name: self.units.state(name).exits for name in ("engine", "server")}
        moved_at, seen = time.monotonic(), None
        while True:
            engine, server = self.units.state("engine"), self.units.state("server")
            for unit in (engine, server):
                if unit.state == "failed":
                    raise failure_of(unit)
            for unit in (engine, server):
                if unit.exits - exits_before[unit.name] >= LOAD_EXITS or (
                    unit.exits > exits_before[unit.name] and unit.exit_code == EXIT_CONFIG
                ):
                    if unit is engine:
                        self.units.stop("engine")
                    raise failure_of(unit)
            health = self.door.probe(release)
            if health is not None and engine.state == "running" and (health.ready or (loaded and health.loaded)):
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
