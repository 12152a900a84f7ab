"""Where the lines of `deployctl logs` come from: files on this machine, a machine's journal over SSH, its mailbox."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from provision.errors import DeployctlError
from provision.target import LogLine, LogQuery

if TYPE_CHECKING:
    from provision.remote import Remote
    from provision.target import Deployed

KNOCK_S = 3.0  # a closed port that does not answer must not keep the mailbox's lines from anybody
BOOT = ("boot", "agent")  # cloud-init and stage 0, then the agent's phases

Report = Callable[[str], None]


def read_lines(target: Deployed, query: LogQuery, report: Report, *, mailbox: bool = False) -> Iterator[LogLine]:
    """A cloud machine's journal where SSH is open from here, else what it has uploaded. `mailbox`: do not try SSH.

    Raises CloudError, ConnectionFailedError, RemoteError.
    """
    from provision.cloud import CloudTarget

    if not isinstance(target, CloudTarget) or mailbox:
        return target.logs(query)
    try:
        open_remote = opener(target)
    except DeployctlError as error:
        report(f"from the mailbox, half a minute late at most: {(error.why or error.what).splitlines()[0]}")
        return target.logs(query)
    from provision.journal import read_journal

    return read_journal(open_remote, query, report)


def opener(target: Deployed) -> Callable[[], Remote]:
    """What opens connections to the machine, once the first one is open. Raises DeployctlError, with the reason, for a
    machine that is not reached over SSH from here."""
    from provision.errors import ConnectionFailedError
    from provision.remote import connect
    from provision.shell import shell_of
    from provision.ways import Direct, describe

    shell = shell_of(target)
    if not isinstance(shell.way, Direct):
        raise ConnectionFailedError("no direct SSH", why=describe(shell.way))
    try:
        socket.create_connection((shell.login.host, shell.login.port), timeout=KNOCK_S).close()
    except OSError as error:
        raise ConnectionFailedError("no SSH", why=f"SSH is closed from here ({error})") from error
    first: list[Remote] = [connect(shell.login)]
    return lambda: first.pop() if first else connect(shell.login)


def for_local(query: LogQuery) -> LogQuery:
    """A deployment on this machine has no boot of its own: its agent's phases are the beginning."""
    return replace(query, units=tuple("supervisor" if unit == "boot" else unit for unit in query.units))
