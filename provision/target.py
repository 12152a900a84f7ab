"""The interface between commands and the place where a deployment lives: this machine, a cloud VM, an SSH host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from provision.render import Order

Life = Literal["stopped", "starting", "ready", "failed", "unknown"]


@dataclass(frozen=True, slots=True)
class ProcessView:
    """One process of a deployment. `uptime_s` in seconds."""

    unit: str
    pid: int
    uptime_s: float | None


@dataclass(frozen=True, slots=True)
class Observation:
    """What a deployment is doing now, in words that hold for every target. Times in seconds.

    `wanted_release` is what the user asked for, `release` what the machine reports about; they differ while a
    redeploy begins and after a rollback. `life` is "unknown" where a machine exists and nobody can say how it does.
    The last fields are those of a cloud: `expires_at` in seconds since the epoch.
    """

    name: str
    target: str
    life: Life
    model: str | None = None
    base_url: str | None = None
    phase: str | None = None
    percent: float | None = None
    bytes: int | None = None
    eta_s: float | None = None
    error: str | None = None
    hint: str | None = None
    wanted_release: str | None = None
    release: str | None = None
    updated_at: float | None = None
    age_s: float | None = None
    price_per_hour: float | None = None
    processes: tuple[ProcessView, ...] = field(default=())
    region: str | None = None
    zone: str | None = None
    instance_type: str | None = None
    instance_id: str | None = None
    expires_at: int | None = None
    held_s: float | None = None  # how long requests waited when this release took over; None when none had to


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach an endpoint. `base_url` ends in /v1; `certificate` is the PEM that clients must pin, None where the
    system's own authorities vouch for it, or without TLS."""

    base_url: str
    api_key: str
    model: str
    max_model_len: int  # tokens, prompt and output of one request
    certificate: str | None = None


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which log lines: of `units` (empty = all), not older than `since_s` seconds, and whether to go on."""

    units: tuple[str, ...] = ()
    since_s: float | None = None
    follow: bool = False


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a unit's log. `at` is seconds since the epoch, None when the line carries no time. `priority` is the
    journal's (3 = error, 4 = warning, 6 = info), None where nobody has said."""

    unit: str
    text: str
    at: float | None
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class Removal:
    """Proof of a `down`: what was there and what is left."""

    name: str
    ended: tuple[str, ...]  # processes that were ended, as "engine (pid 12)"
    processes_left: tuple[str, ...]
    port: int | None
    port_free: bool
    state_left: str | None
    price_per_hour: float
    kept: str | None = None  # what was asked to stay

    @property
    def is_clean(self) -> bool:
        return not self.processes_left and self.port_free and self.state_left is None


class Deployed(Protocol):
    """A deployment wherever it lives, for commands that look at it and change nothing."""

    @property
    def name(self) -> str: ...

    def observe(self) -> Observation:
        """Never raises for a deployment that is down; raises StateError for a damaged state."""
        ...

    def access(self) -> Access:
        """Raises NotRunningError when there is no endpoint."""
        ...

    def logs(self, query: LogQuery) -> Iterator[LogLine]: ...


class Target(Deployed, Protocol):
    """A deployment that is given its releases one by one. Every method may be called again after Ctrl-C at any point.

    A cloud's is given a spec instead (provision.cloud), because the Pulumi program makes its releases.
    """

    def start(self, order: Order) -> None:
        """Makes the machine run `order`; returns once it begins to report. Raises PortTakenError, FailedError."""
        ...

    def change(self, order: Order) -> None:
        """Gives a running machine the next release. Raises NotRunningError."""
        ...

    def go_back(self, release: str) -> None:
        """Makes an earlier release the wanted one again."""
        ...

    def stop(self) -> None:
        """Ends all processes and keeps the state, so that `start` may follow."""
        ...

    def remove(self) -> Removal:
        """Ends and deletes everything. Works on damaged and half-made state too."""
        ...
