"""What the agent works on. `local` and a cloud's VM differ only in what stands behind this interface.

LocalMachine looks and changes nothing: the user has made this machine what it is. VmMachine (vm_machine.py) makes the
machine what the release needs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runtime.agent import overlay, phases
from runtime.agent.control import SupervisorClient
from runtime.agent.files import PRIVATE, Access
from runtime.agent.process import PACKAGES
from runtime.agent.releases import Release
from runtime.agent.serving import Health, probe_health
from runtime.agent.status import PhaseError, Report
from runtime.agent.units import UnitManager
from runtime.agent.weights import Caches
from runtime.mailbox import Current, Mailbox


class Machine(Protocol):
    """Each of `prepare_…` is the work of one phase: it may take long, calls `report` often, may be repeated after
    any interruption, and raises PhaseError (or what `report` raises)."""

    @property
    def state(self) -> Path: ...

    @property
    def run_dir(self) -> Path:
        """Where server and engine have their sockets."""
        ...

    @property
    def units(self) -> UnitManager: ...

    @property
    def instance_id(self) -> str | None:
        """None = the name of this host."""
        ...

    @property
    def access(self) -> Access:
        """For the files that server and engine read."""
        ...

    @property
    def caches(self) -> Caches:
        """Where weights lie. Known once the phase `disk` is done."""
        ...

    def prepare_python(self, wanted: Current, release: Release, report: Report) -> None:
        """What the release's server needs to start."""
        ...

    def prepare_disk(self, release: Release, need_bytes: Callable[[Caches], int], report: Report) -> None: ...

    def prepare_driver(self, release: Release, report: Report) -> None: ...

    def prepare_runtime(self, wanted: Current, release: Release, report: Report) -> None: ...

    def resume(self, release: Release, need_bytes: Callable[[Caches], int], report: Report) -> bool:
        """After a boot: what the engine of a release that served before it needs, without a download. False: it cannot
        serve, or nobody expects it to, because a person has just started something else."""
        ...

    def overtake(self, wanted: Current, why: str, report: Report) -> None:
        """Makes the version that a release brings the agent's own, because this one cannot read it: `why`. Nothing that
        serves is touched. Raises PhaseError where that is impossible or does not help."""
        ...

    def packages(self, release: Release) -> list[str] | None:
        """The folders in which the release's processes find packages; None = where this process does."""
        ...

    def open(self, release: Release) -> bool:
        """Port and certificate, before the server runs on this release. True: a running server must start again."""
        ...

    def probe(self, release: Release) -> Health | None:
        """What the server says of itself over the port of `release`; None when it does not answer."""
        ...

    def warning(self) -> str | None:
        """A hint that the status carries although all is well."""
        ...

    def note_failure(self) -> None:
        """Something has failed: what helps to understand it should be in the mailbox soon."""
        ...

    def switch_off(self) -> None:
        """Ends all of this, because nobody uses it. Raises PowerError, UnitError."""
        ...

    def settle(self, release: Release) -> bool:
        """`release` is ready, the one before is needed for a rollback only. True: the agent itself must start again,
        to run the version that the release brings."""
        ...


@dataclass(frozen=True, slots=True)
class LocalMachine:
    """The user's own machine: the supervisor's units, this interpreter, this user's caches."""

    state: Path
    units: UnitManager
    mailbox: Mailbox
    host: str
    port: int
    caches: Caches
    free_bytes: Callable[[Path], int] | None = None
    instance_id: str | None = None
    access: Access = PRIVATE

    @property
    def run_dir(self) -> Path:
        return self.state / "run"

    def prepare_python(self, wanted: Current, release: Release, report: Report) -> None:
        phases.check_python()
        overlay.install(self.mailbox, wanted, release, self.state)

    def prepare_disk(self, release: Release, need_bytes: Callable[[Caches], int], report: Report) -> None:
        hub = release.deployment.model.source.startswith("hf:")
        folder = self.caches.hub if hub else self.caches.models
        phases.check_disk(folder, need_bytes(self.caches), self.free_bytes)

    def prepare_driver(self, release: Release, report: Report) -> None:
        phases.check_driver(release.deployment)

    def prepare_runtime(self, wanted: Current, release: Release, report: Report) -> None:
        phases.check_runtime(release.deployment)

    def resume(self, release: Release, need_bytes: Callable[[Caches], int], report: Report) -> bool:
        return False

    def overtake(self, wanted: Current, why: str, report: Report) -> None:
        raise PhaseError(
            f"{why}: it was asked for by another version of deployctl than the one that runs here",
            "`deployctl stop`, then `deployctl wake` start the installed version; then the same command again",
            retry=False,
        )

    def packages(self, release: Release) -> list[str] | None:
        overlaid = release.folder / PACKAGES
        return [str(overlaid), *sys.path] if overlaid.is_symlink() else None

    def open(self, release: Release) -> bool:
        return False

    def probe(self, release: Release) -> Health | None:
        return probe_health(self.host, self.port)

    def warning(self) -> str | None:
        return None

    def note_failure(self) -> None:
        return None

    def switch_off(self) -> None:
        SupervisorClient(self.run_dir).shutdown()

    def settle(self, release: Release) -> bool:
        return False
