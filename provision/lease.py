"""One command at a time works on a deployment of a cloud, from whatever laptop: `release/lock.json` in its mailbox.

Pulumi has a lock of its own, for as long as an update runs. This one lasts until the command has seen its release
serve, or has taken it back. A store keeps no lock: who writes waits a moment and looks whose word stands there. A
command that dies frees it: at once on its own machine, after STALE_S elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from provision import audit, process
from provision.errors import LockedError, NotRunningError
from provision.progress import format_seconds
from runtime.bucket import BucketError
from runtime.deployment import Struct, encode
from runtime.mailbox import LOCK, Mailbox

if TYPE_CHECKING:
    from provision.cloud import CloudTarget

STALE_S = 300.0  # without a sign of life
RENEW_S = 60.0
SETTLE_S = 0.5  # longer than it takes to look and to write
Report = Callable[[str], None]


class Holder(Struct, frozen=True):
    """Who works on the deployment. Times in seconds since the epoch; `token` tells two commands of one person apart."""

    by: str
    host: str
    pid: int
    command: str
    since: float
    renewed_at: float
    token: str
    released: bool = False


def is_free(holder: Holder | None, now: float) -> bool:
    """Whether nobody works on it, or nobody who lives."""
    if holder is None or holder.released or now - holder.renewed_at > STALE_S:
        return True
    return holder.host == socket.gethostname() and process.start_ticks(holder.pid) is None


class Lease:
    """The lock of one command. `take` may be called again; before the mailbox exists it does nothing."""

    def __init__(
        self,
        name: str,
        command: str,
        open_mailbox: Callable[[], Mailbox | None],
        report: Report,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        now, pid, token = time.time(), os.getpid(), secrets.token_hex(8)
        self._mine = Holder(audit.who(), socket.gethostname(), pid, command, now, now, token)
        self._name = name
        self._open = open_mailbox
        self._report = report
        self._pause = pause
        self._mailbox: Mailbox | None = None
        self._over = threading.Event()

    def take(self) -> None:
        """Raises LockedError that says who works on the deployment. A mailbox that cannot be reached is said."""
        if self._mailbox is not None:
            return
        try:
            mailbox = self._open()
            if mailbox is None:
                return
            self._write(mailbox)
        except BucketError as error:
            self._report(f"the lock of {self._name} cannot be kept, only Pulumi's: {error}")

    def release(self) -> None:
        mailbox, self._mailbox = self._mailbox, None
        self._over.set()
        if mailbox is not None:
            with contextlib.suppress(BucketError):
                mailbox.put(LOCK, encode(msgspec.structs.replace(self._mine, released=True)))

    def _write(self, mailbox: Mailbox) -> None:
        holder = read_holder(mailbox)
        if holder is not None and not is_free(holder, time.time()):
            raise locked_error(self._name, holder)
        if holder is not None and not holder.released:
            self._report(f"`{holder.command}` of {holder.by} has died, and frees {self._name}")
        mailbox.put(LOCK, encode(self._mine))
        self._pause(SETTLE_S)
        holder = read_holder(mailbox)
        if holder is not None and holder.token != self._mine.token:
            raise locked_error(self._name, holder)
        audit.tell(mailbox.put, self._mine.command)
        self._mailbox = mailbox
        threading.Thread(target=self._renew, args=(mailbox,), name="lease", daemon=True).start()

    def _renew(self, mailbox: Mailbox) -> None:
        while not self._over.wait(RENEW_S):
            with contextlib.suppress(BucketError):
                mailbox.put(LOCK, encode(msgspec.structs.replace(self._mine, renewed_at=time.time())))


@contextmanager
def leased(target: CloudTarget, command: str, report: Report) -> Iterator[Lease]:
    """Holds the lock of a deployment on a cloud, and notes the command. Raises LockedError."""

    def open_mailbox() -> Mailbox | None:
        try:
            return target.mailbox
        except NotRunningError:
            return None

    lease = Lease(target.name, command, open_mailbox, report)
    lease.take()
    audit.note(target.name, command)
    try:
        yield lease
    finally:
        lease.release()


def read_holder(mailbox: Mailbox) -> Holder | None:
    """What stands in the mailbox; what cannot be read holds nothing. Raises BucketError."""
    data = mailbox.get(LOCK)
    try:
        return None if data is None else msgspec.json.decode(data, type=Holder)
    except msgspec.DecodeError:
        return None


def locked_error(name: str, holder: Holder) -> LockedError:
    ago = format_seconds(max(0.0, time.time() - holder.since))
    return LockedError(
        f"another command works on {name}",
        why=f"`{holder.command}` of {holder.by}, pid {holder.pid}, since {ago};\n"
        f"if it has died, {name} is free {STALE_S / 60:.0f} minutes after its last sign of life",
        next_command=f"deployctl status {name}",
    )
