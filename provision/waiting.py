"""Waiting for a cloud deployment by its mailbox alone: no stack, no state, no SSH."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from provision import mailboxes
from provision.client import OpenAIClient
from provision.errors import EndpointError, FailedError, NotRunningError
from provision.local import judge
from provision.progress import Display, make_display, wait_until_settled
from provision.target import Access, LogLine, LogQuery, Observation
from runtime.bucket import BucketError
from runtime.mailbox import IDENTITY, STATUS, Identity, Mailbox, Status, decode_identity, decode_status
from runtime.vm import Provider

SILENCE_LIMIT_S = 900.0  # a machine boots, installs a driver and boots again without a word
UNREADABLE_LIMIT_S = 120.0  # until a mailbox that is forbidden from here is given up


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which release of which deployment. `bucket`: its mailbox (provision.mailboxes). `store`: address of the object
    store, None = the cloud's own. `instance_id`: reports of any other instance are old; None = any counts."""

    name: str
    provider: Provider
    region: str
    bucket: str
    base_url: str
    release: str
    store: str | None = None
    instance_id: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """`state` is "unknown" where the mailbox cannot be read from here. `certificate` in PEM, None without one."""

    state: Literal["ready", "unknown"]
    release: str
    certificate: str | None = None


class Mailed:
    """A deployment as its mailbox shows it."""

    def __init__(self, wanted: Wanted, mailbox: Mailbox, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = wanted.name
        self._wanted = wanted
        self._mailbox = mailbox
        self._clock = clock
        self._readable_at = clock()

    def observe(self) -> Observation:
        """Raises BucketError when the mailbox could not be read for UNREADABLE_LIMIT_S."""
        seen = Observation(
            self.name, self._wanted.provider, "starting",
            base_url=self._wanted.base_url, wanted_release=self._wanted.release, region=self._wanted.region,
        )  # fmt: skip
        try:
            data = self._mailbox.get(STATUS)
        except BucketError as error:
            if self._clock() - self._readable_at > UNREADABLE_LIMIT_S:
                raise
            return dataclasses.replace(seen, life="unknown", error=str(error))
        self._readable_at = self._clock()
        try:
            status = decode_status(data) if data is not None else None
        except msgspec.DecodeError:
            status = None
        if status is not None and self._wanted.instance_id not in (None, status.instance_id):
            status = None
        return with_status(seen, status)

    def certificate(self) -> str | None:
        """Raises BucketError."""
        data = self._mailbox.get(IDENTITY)
        try:
            identity: Identity | None = decode_identity(data) if data is not None else None
        except msgspec.DecodeError:
            return None
        if identity is None or self._wanted.instance_id not in (None, identity.instance_id):
            return None
        return identity.certificate

    def access(self) -> Access:
        raise NotRunningError(f"{self.name} is known by its mailbox only")

    def logs(self, query: LogQuery) -> Iterator[LogLine]:
        return iter(())


def wait_for_release(
    wanted: Wanted,
    *,
    mailbox: Mailbox | None = None,
    display: Display | None = None,
    poll_s: float | None = None,
    silence_limit_s: float = SILENCE_LIMIT_S,
) -> Found:
    """Shows progress until the release is ready. Raises FailedError; a mailbox that is forbidden from here is no
    failure but "unknown"."""
    box = mailbox or mailboxes.open_mailbox(wanted.provider, wanted.region, wanted.bucket, wanted.store)
    poll_s = poll_s or mailboxes.poll_s(wanted.bucket)
    target = Mailed(wanted, box)
    try:
        seen = wait_until_settled(
            target, wanted.release, display or make_display(), silence_limit_s=silence_limit_s, poll_s=poll_s
        )
        if seen.life == "ready" and seen.release == wanted.release:
            return Found("ready", wanted.release, target.certificate())
    except BucketError:
        return Found("unknown", wanted.release)
    why = "\n".join(text for text in (seen.error, seen.hint) if text)
    phase = f" in phase {seen.phase}" if seen.phase else ""
    raise FailedError(
        f"release {wanted.release} of {wanted.name} failed{phase}",
        why=why or None,
        next_command=f"deployctl logs {wanted.name}",
    )


def try_endpoint(wanted: Wanted, found: Found, key: str) -> str:
    """One line about the endpoint as this machine sees it. Others may be let in where this one is not, so that a
    failure here is told and nothing more."""
    try:
        with OpenAIClient(wanted.base_url, key, found.certificate) as client:
            status = client.status_of("models")
    except EndpointError as error:
        return f"the endpoint cannot be reached from here: {error}"
    return "the endpoint answers here" if status == 200 else f"the endpoint answers here with status {status}"


def with_status(seen: Observation, status: Status | None) -> Observation:
    """The observation with what the machine says about itself."""
    seen = dataclasses.replace(seen, life=judge(seen.wanted_release, status, alive=True))
    if status is None:
        return seen
    known = status.release == seen.wanted_release or status.error is not None
    seen = dataclasses.replace(seen, release=status.release, updated_at=status.updated_at)
    if not known:
        return seen
    return dataclasses.replace(
        seen,
        phase=status.phase,
        percent=status.percent,
        bytes=status.bytes,
        eta_s=status.eta_s,
        error=status.error,
        hint=status.hint,
        held_s=status.held_s,
    )
