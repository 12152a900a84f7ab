"""Who has told which deployment to do what: one line of JSON per command that changes something.

$XDG_STATE_HOME/deployctl/.audit.log     on this machine, mode 0600; the newest 1 to 2 MiB are kept
release/asked.json in the mailbox        the last of them, for the journal of a cloud's machine (runtime.agent.audit)
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable

import msgspec

from provision.state import current_user, state_root
from runtime.deployment import encode
from runtime.mailbox import ASKED, Asked

MOST_BYTES = 2**20  # of one file; one older file is kept


class AuditLine(msgspec.Struct, frozen=True):
    """One command. `at`: seconds since the epoch; `command`: without the values of secret options."""

    at: float
    by: str
    deployment: str
    command: str
    pid: int


def who() -> str:
    """ "ada@lovelace"."""
    return f"{current_user()}@{socket.gethostname()}"


def tell(put: Callable[[str, bytes], None], command: str) -> None:
    """Tells a machine whose order comes next. `put`: into its mailbox."""
    put(ASKED, encode(Asked(by=who(), command=command, at=time.time())))


def note(deployment: str, command: str) -> None:
    """Writes the line. A disk that is full keeps nobody from `down`."""
    line = AuditLine(time.time(), who(), deployment, command, os.getpid())
    path = state_root() / ".audit.log"
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > MOST_BYTES:
                path.replace(path.with_suffix(".log.1"))
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, msgspec.json.encode(line) + b"\n")
        finally:
            os.close(descriptor)
