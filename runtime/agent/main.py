"""The agent: brings the mailbox's current release up, phase by phase, and keeps watching it.

wait ──new release──► python ► disk ► driver ► runtime ► weights ► load ► serve ──► ready ──► watch
                         └────────────── error ──────────────┴── error ──┴► back to the release before

It is the same on `local` and on a cloud's VM; what differs stands behind `runtime.agent.machine.Machine`.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runtime.agent import built
from runtime.agent.control import SupervisorClient
from runtime.agent.fingerprint import Fingerprints
from runtime.agent.machine import LocalMachine, Machine
from runtime.agent.releases import Failure, Release, ReleaseError, Releases, UnreadableError
from runtime.agent.serving import Serving
from runtime.agent.status import MIN_INTERVAL_S, PhaseError, Progress, Report, StatusBoard
from runtime.agent.supervisor import read_record
from runtime.agent.takeover import Takeover
from runtime.agent.units import UnitError
from runtime.agent.watch import Patience, Settled, Watch
from runtime.agent.weights import CONVERTER, Caches, hub_token, missing_bytes, prepare_weights
from runtime.bucket import BucketError
from runtime.mailbox import BUILT, CURRENT, RELEASES, Current, FolderMailbox, Mailbox, Phase, decode_current


@dataclass(frozen=True, slots=True)
class Settings:
    """Times in seconds, and the two things that a test replaces."""

    poll_s: float = 0.5
    status_s: float = MIN_INTERVAL_S  # between two reports of progress
    probe_s: float = 2.0  # between two looks at /health while all is well
    load_s: float = 0.1  # the same while a release loads
    retry_s: float = 10.0  # before a first deployment that failed is tried again; doubles up to retry_most_s
    retry_most_s: float = 60.0
    no_progress_s: float = 300.0
    hang_s: float = 120.0  # not ready and nothing moves, though the engine runs: it is restarted
    silent_s: float = 10.0  # the same once it has loaded: the server has waited for a step before it says so
    converter: tuple[str, ...] = CONVERTER
    free_bytes: Callable[[Path], int] | None = None


class Interrupted(Exception):
    """SIGTERM came, or the mailbox asks for another release: leave the work at hand."""


class Agent:
    """One machine's agent. `run` returns after `stop`, or when it must start again on the version of a new release."""

    def __init__(self, machine: Machine, mailbox: Mailbox, settings: Settings) -> None:
        self._machine = machine
        self._mailbox = mailbox
        self._units = machine.units
        self._settings = settings
        self._releases = Releases(machine.state, machine.access)
        self._board = StatusBoard(mailbox, machine.instance_id, settings.status_s)
        self._stop = threading.Event()
        self._serving = Serving(
            machine.units,
            self._releases,
            machine,
            Takeover(machine.run_dir, machine.access),
            Fingerprints(machine.state, machine.access),
            self._pause,
            settings.load_s,
            settings.no_progress_s,
        )
        patience = Patience(settings.probe_s, settings.hang_s, settings.silent_s)
        self._watch = Watch(machine, mailbox, self._board, patience)
        self._working_on: Current | None = None
        self._settled: Settled | None = None
        self._warning: str | None = None
        self._held_s: float | None = None
        self._retries = 0
        self._looked_at = 0.0

    def stop(self) -> None:
        self._stop.set()

    def run(self) -> int:
        while not self._stop.is_set():
            try:
                wanted = self._wanted()
                if wanted is not None and self._is_due(wanted):
                    self._deploy(wanted)
                elif self._settled is not None:
                    self._watch.look(self._settled)
                self._stop.wait(self._settings.poll_s)
            except Interrupted:
                continue
            except msgspec.DecodeError as error:
                self._board.post("", "python", error=f"{CURRENT}: {error}", hint="run `deployctl up` again")
                self._stop.wait(self._settings.poll_s)
            except UnitError as error:  # usually the supervisor is about to stop, and this process with it
                self._log(str(error))
                self._stop.wait(self._settings.poll_s)
        return 0

    def _wanted(self) -> Current | None:
        data = self._mailbox.get(CURRENT)
        return None if data is None else decode_current(data)

    def _is_due(self, wanted: Current) -> bool:
        settled = self._settled
        if settled is None or settled.wanted != wanted:
            self._retries = 0
            return True
        return settled.retry_at is not None and time.monotonic() >= settled.retry_at

    def _deploy(self, wanted: Current) -> None:
        """All phases of one release, from wherever an earlier run of them has come."""
        self._working_on = wanted
        self._warning, self._held_s = None, None
        phase: Phase = "python"
        release: Release | None = None
        try:
            self._resume(wanted)
            release = self._install(wanted)
            if release is None:
                return
            if self._serving.is_ready(release):
                phase = "load"
                self._serving.reopen(release, self._report_as(release.id, phase))
                self._succeed(wanted, release)
                return
            if (failure := release.failure()) is not None:
                self._fall_back(wanted, release, failure)
                return
            self._log(f"release {release.id}: {release.deployment.model.source}")
            self._serving.start_server()
            for phase, work in self._plan(wanted, release):
                self._note(release, phase)
                work()
            self._publish(BUILT, msgspec.json.encode(built.describe(release, self._machine.packages(release))))
            self._succeed(wanted, release)
        except ReleaseError as error:
            self._fail(wanted, None, "python", PhaseError(str(error), "run `deployctl up` again", retry=False))
        except PhaseError as error:
            self._fail(wanted, release, phase, error)
        except BucketError as error:
            self._postpone(wanted, phase, f"the mailbox cannot be reached: {error}", "it is tried again by itself")
        except UnitError as error:
            self._postpone(wanted, phase, str(error), "see `deployctl logs agent`; it is tried again by itself")
        except OSError as error:  # a full disk above all
            self._postpone(wanted, phase, str(error), "free space on the machine's disk; it is tried again by itself")
        finally:
            self._working_on = None
        self._publish_releases()

    def _install(self, wanted: Current) -> Release | None:
        """None: this version cannot read the release, and the agent is to start again on the one that it brings."""
        try:
            return self._releases.install(self._mailbox, wanted)
        except UnreadableError as error:
            self._log(f"{error}; it may be of a newer version")
            self._machine.overtake(wanted, str(error), self._report_as(wanted.release, "python"))
            self._stop.set()
            return None

    def _resume(self, wanted: Current) -> None:
        """After a boot in the middle of a redeploy, the release that served until then serves while the wanted one is
        made ready."""
        current = self._releases.current()
        if self._settled is not None or current is None or current.id == wanted.release or not current.proven:
            return
        try:
            if self._machine.resume(current, self._missing_of(current), lambda _: self._check_interrupted()):
                self._serving.start_server()
                self._serving.start_engine()
                self._log(f"release {current.id} serves until {wanted.release} is ready")
        except PhaseError as error:
            self._log(f"release {current.id} cannot serve meanwhile: {error.error}")

    def _missing_of(self, release: Release) -> Callable[[Caches], int]:
        return lambda caches: missing_bytes(release.deployment, caches, release.weights())

    def _publish_releases(self) -> None:
        serving = self._settled.serving if self._settled is not None else None
        entries = msgspec.json.encode(self._releases.entries(None if serving is None else serving.id))
        self._publish(RELEASES, entries)

    def _publish(self, key: str, data: bytes) -> None:
        """For the user to read; what serves does not depend on it."""
        try:
            self._mailbox.put(key, data)
        except (BucketError, OSError) as error:
            self._log(f"{key}: {error}")

    def _plan(self, wanted: Current, release: Release) -> list[tuple[Phase, Callable[[], None]]]:
        machine, serving = self._machine, self._serving
        report_as = functools.partial(self._report_as, release.id)

        def python() -> None:
            machine.prepare_python(wanted, release, report_as("python"))
            if self._releases.current() is None:
                self._releases.switch(release)
            self._serving.start_server()

        def weights() -> None:
            found = prepare_weights(
                release.deployment.model,
                machine.caches,
                report_as("weights"),
                done=release.weights(),
                token=hub_token(self._mailbox, needed=release.weights() is None),
                converter=self._settings.converter,
            )
            release.put_weights(found)

        def load() -> None:
            serving.activate(release, report_as("load"))
            serving.follow(release, report_as("load"), loaded=True)

        def serve() -> None:
            self._warning = serving.verify(release, report_as("serve"))
            self._held_s = serving.takeover.end()
            serving.follow(release, report_as("serve"))

        return [
            ("python", python),
            ("disk", lambda: machine.prepare_disk(release, self._missing_of(release), report_as("disk"))),
            ("driver", lambda: machine.prepare_driver(release, report_as("driver"))),
            ("runtime", lambda: machine.prepare_runtime(wanted, release, report_as("runtime"))),
            ("weights", weights),
            ("load", load),
            ("serve", serve),
        ]

    def _report_as(self, release: str, phase: Phase) -> Report:
        return lambda progress: self._advance(release, phase, progress)

    def _succeed(self, wanted: Current, release: Release) -> None:
        held_s = self._held_s
        release.mark_ready()
        self._releases.prune()
        self._watch.begin(release)
        hint = "; ".join(text for text in (self._machine.warning(), self._warning) if text) or None
        exits = self._units.state("server").exits
        self._settled = Settled(wanted, release, hint=hint, held_s=held_s, server_exits=exits)
        self._retries = 0
        self._board.post(release.id, "ready", Progress(percent=100.0), hint=hint, held_s=held_s)
        held = "" if held_s is None else f"; requests were held for {held_s:.1f} s"
        self._log(f"release {release.id} is ready{held}")
        if self._machine.settle(release):
            self._stop.set()

    def _fail(self, wanted: Current, release: Release | None, phase: Phase, error: PhaseError) -> None:
        self._log(f"release {wanted.release}: phase {phase}: {error.error} | hint: {error.hint}")
        self._machine.note_failure()
        failure = Failure(phase=phase, error=error.error, hint=error.hint)
        if self._previous(wanted, release) is None and error.retry:
            self._serving.takeover.end()
            self._settled = Settled(wanted, None, error.error, error.hint, self._retry_at())
            self._board.post(wanted.release, phase, error=error.error, hint=error.hint)
            return
        if release is not None:
            release.mark_failed(failure)
        self._fall_back(wanted, release, failure)

    def _postpone(self, wanted: Current, phase: Phase, error: str, hint: str) -> None:
        """The machine's surroundings failed, not the release: what serves goes on, and the work is tried again."""
        self._log(f"release {wanted.release}: phase {phase}: {error}")
        self._machine.note_failure()
        current = self._releases.current()
        serving = current if current is not None and self._serving.is_ready(current) else None
        self._settled = Settled(wanted, serving, error, hint, self._retry_at())
        if serving is None:
            self._board.post(wanted.release, phase, error=error, hint=hint)
        else:
            self._board.post(serving.id, "ready", error=error, hint=hint)

    def _retry_at(self) -> float:
        wait = min(self._settings.retry_most_s, self._settings.retry_s * 2.0**self._retries)
        self._retries += 1
        return time.monotonic() + wait

    def _previous(self, wanted: Current, release: Release | None) -> Release | None:
        """The release to go back to: the one that served last. For one that has served itself, only what has served
        since then: it is not replaced by an older one."""
        before = self._releases.last_proven(besides=wanted.release)
        if before is None or release is None or not release.proven:
            return before
        return before if before.ready_at > release.ready_at else None

    def _fall_back(self, wanted: Current, release: Release | None, failure: Failure) -> None:
        """Serves the release before again, and says so; without one, the error is all there is."""
        previous = self._previous(wanted, release)
        hint = failure.hint
        if previous is None:
            self._serving.takeover.end()
            if failure.phase in ("load", "serve"):
                self._units.stop("engine")
            self._settled = Settled(wanted, None, failure.error, hint)
            self._board.post(wanted.release, failure.phase, error=failure.error, hint=hint)
            return
        failed = f"release {wanted.release} failed in phase {failure.phase}: {failure.error}"

        def report(progress: Progress) -> None:
            self._advance(previous.id, "load", progress, f"{failed}; going back", hint)

        try:
            self._serving.activate(previous, report)
            self._serving.follow(previous, report, loaded=True)
            self._serving.takeover.end()
            self._serving.follow(previous, report)
        except PhaseError as error:
            self._serving.takeover.end()
            both = f"{failed}; release {previous.id} does not come back either: {error.error}"
            self._settled = Settled(wanted, None, both, error.hint)
            self._board.post(wanted.release, "load", error=both, hint=error.hint)
            return
        self._settled = Settled(wanted, previous, f"{failed}; release {previous.id} still serves", hint)
        self._board.post(previous.id, "ready", error=self._settled.error, hint=hint)
        self._log(f"release {previous.id} serves again")

    def _note(self, release: Release, phase: Phase) -> None:
        """A phase begins. While a failed deployment is tried again, its error stays until something moves."""
        self._check_interrupted()
        if self._retries == 0:
            self._board.post(release.id, phase)

    def _advance(
        self,
        release: str,
        phase: Phase,
        progress: Progress,
        error: str | None = None,
        hint: str | None = None,
    ) -> None:
        self._check_interrupted()
        if self._retries == 0 or progress.percent is not None or progress.bytes:
            self._board.post(release, phase, progress, error=error, hint=hint)

    def _pause(self, seconds: float) -> None:
        self._stop.wait(seconds)
        self._check_interrupted()

    def _check_interrupted(self) -> None:
        if self._stop.is_set():
            raise Interrupted
        now = time.monotonic()
        if now - self._looked_at < self._settings.poll_s:
            return
        self._looked_at = now
        if self._working_on is not None and self._wanted() != self._working_on:
            raise Interrupted

    @staticmethod
    def _log(text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def run(state: Path, mailbox: Path, settings: Settings | None = None) -> int:
    """`deployctl-runtime agent`. Runs until SIGTERM or SIGINT."""
    state = state.absolute()
    record = read_record(state)
    if record is None:
        print(
            f"error: no supervisor runs for {state} | hint: run `deployctl up`, or "
            "`deployctl-runtime supervise` for this folder",
            file=sys.stderr,
        )
        return 1
    settings = settings or Settings()
    folder = FolderMailbox(mailbox.absolute())
    machine = LocalMachine(
        state,
        SupervisorClient(state / "run"),
        folder,
        record.host,
        record.port,
        Caches.from_environment(os.environ),
        settings.free_bytes,
    )
    return follow_signals(Agent(machine, folder, settings))


def follow_signals(agent: Agent) -> int:
    """Runs the agent until SIGTERM or SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    return agent.run()


def run_vm(vm: Path) -> int:
    """`deployctl-runtime agent --vm`: the same on a cloud's VM. Imported here: a local machine needs none of it."""
    from runtime.agent.vm_machine import run

    return run(vm)
