"""How one server follows another on the same socket, and the files in which agent and server tell each other things.

    old server  accepts ──────────┐ SIGUSR1: accepts no more, lets its requests end, ends itself
    new server          imports ──┴► accepts, holds ─────────────────────────► answers
    engine      old ─────────────────── until the old server is gone ─► new ┘

`<run>/handover.json` (agent → server): while it names a server's release and says `held`, new requests wait.
`<run>/probed.json` (server → agent): the answer to `Handover.probe`.
`<run>/activity` (server → agent): its modification time is that of the last request; empty.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runtime.deployment import Struct

HANDOVER = "handover.json"
PROBED = "probed.json"
ACTIVITY = "activity"
PREDECESSOR = "DEPLOYCTL_PREDECESSOR"  # environment of a new server: "pid:start ticks" of the one that it follows
NOTIFY_SOCKET = "NOTIFY_SOCKET"  # systemd's name, see sd_notify(3); the local supervisor listens there too
HAND_OVER = signal.SIGUSR1  # to the old server, from the new one
BEGIN = signal.SIGHUP  # to a server under systemd: start the next one
_ZOMBIE = "Z"


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process and no other: `started_at` is field 22 of /proc/<pid>/stat, so that a reused pid is told apart."""

    pid: int
    started_at: int

    def __str__(self) -> str:
        return f"{self.pid}:{self.started_at}"

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """None when there is no such process, or only its exit status is left."""
        fields = _stat(pid)
        return None if fields is None or fields[0] == _ZOMBIE else cls(pid, int(fields[19]))

    @classmethod
    def parse(cls, text: str) -> ProcessId | None:
        """What `str` gave; None for anything else."""
        pid, colon, started_at = text.partition(":")
        return cls(int(pid), int(started_at)) if colon and pid.isdecimal() and started_at.isdecimal() else None

    @property
    def is_alive(self) -> bool:
        return ProcessId.of(self.pid) == self

    def send(self, number: signal.Signals) -> None:
        """Nothing happens when the process has gone."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Handover(Struct, frozen=True):
    """`release` takes over. `held`: requests to it wait; `began_at` in seconds since the epoch.

    `predecessor`: the server before, as `ProcessId` writes it. `probe`: the name of a question to the engine, which its
    server shall ask and answer in `probed.json`.
    """

    release: str
    began_at: float
    held: bool = False
    predecessor: str | None = None
    probe: str | None = None


class Probed(Struct, frozen=True):
    """What the engine greedily answered to a fixed prompt: token ids, or why there are none."""

    probe: str
    tokens: tuple[int, ...] = ()
    error: str | None = None


def read_handover(run_dir: Path) -> Handover | None:
    """None without one, and for one that another version has written in another form."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode((run_dir / HANDOVER).read_bytes(), type=Handover)
    return None


def read_probed(run_dir: Path) -> Probed | None:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode((run_dir / PROBED).read_bytes(), type=Probed)
    return None


def predecessor() -> ProcessId | None:
    """The server that this one was started to follow."""
    return ProcessId.parse(os.environ.get(PREDECESSOR, ""))


def announce() -> None:
    """This server accepts now: whoever owns the unit counts it as the main process, and the one before may go."""
    notify(f"READY=1\nMAINPID={os.getpid()}")
    before = predecessor()
    if before is not None:
        before.send(HAND_OVER)


def notify(message: str) -> None:
    """Tells the owner of this unit, if there is one that listens; see sd_notify(3)."""
    address = os.environ.get(NOTIFY_SOCKET)
    if not address:
        return
    path = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.sendto(message.encode(), path)


def announced_pid(message: bytes) -> int | None:
    """The MAINPID of a message of `notify`."""
    for line in message.decode("ascii", "replace").splitlines():
        name, _, value = line.partition("=")
        if name == "MAINPID" and value.isdecimal():
            return int(value)
    return None


def start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat (clock ticks after boot), of a process that waits to be reaped too."""
    fields = _stat(pid)
    return None if fields is None else int(fields[19])


def _stat(pid: int) -> list[str] | None:
    """Fields from the third on: the name in field 2 may hold spaces and brackets."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
