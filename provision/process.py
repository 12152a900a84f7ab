"""Processes and ports as /proc shows them: is a pid still the same process, who listens on a port.

A pid alone proves nothing, because the kernel gives it out again; pid + start ticks does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp


def start_ticks(pid: int) -> int | None:
    """Clock ticks since boot at which `pid` started (proc_pid_stat(5), field 22); None when it is gone or a zombie."""
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except (OSError, ValueError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name in parentheses may hold spaces
    return None if fields[0] in ("Z", "X") else int(fields[19])


def is_same_process(pid: int, ticks: int | None) -> bool:
    """True when `pid` lives and started at `ticks`."""
    return ticks is not None and start_ticks(pid) == ticks


def uptime_s(pid: int) -> float | None:
    """Seconds since `pid` started."""
    ticks = start_ticks(pid)
    if ticks is None:
        return None
    boot_s = float((PROC / "uptime").read_text().split()[0])
    return max(0.0, boot_s - ticks / os.sysconf("SC_CLK_TCK"))


def memory_bytes(pid: int) -> int:
    """Resident memory of `pid` in bytes that it shares with no file; 0 when it is gone."""
    with contextlib.suppress(OSError, ValueError):
        resident, shared = (PROC / str(pid) / "statm").read_text().split()[1:3]
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    return 0


def arguments(pid: int) -> list[str]:
    """The command line of `pid` in words; empty when it is gone or not readable."""
    with contextlib.suppress(OSError):
        words = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
        return [word.decode(errors="replace") for word in words if word]
    return []


def command_line(pid: int) -> str | None:
    """The command of `pid` in one line of at most 120 characters; None when it cannot be read."""
    text = " ".join(arguments(pid))
    return (text if len(text) <= 120 else text[:119] + "…") or None


def holds_open(pid: int, path: Path) -> bool:
    """True when `pid` has `path` open."""
    with contextlib.suppress(OSError):
        wanted = path.stat()
        for descriptor in (PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                found = descriptor.stat()
                if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
    return False


def children(pid: int) -> list[int]:
    """All living descendants of `pid`, parents before children."""
    parents: dict[int, list[int]] = {}
    for child in _pids():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (PROC / str(child) / "stat").read_text().rpartition(")")[2].split()
            if fields[0] not in ("Z", "X"):
                parents.setdefault(int(fields[1]), []).append(child)
    found: list[int] = []
    pending = [pid]
    while pending:
        next_ones = parents.get(pending.pop(0), [])
        found += next_ones
        pending += next_ones
    return found


def processes_naming(path: Path) -> list[int]:
    """Processes of any kind, but this one, whose arguments name `path` or a file under it."""
    wanted = str(path)
    return [
        pid
        for pid in _pids()
        if pid != os.getpid()
        and any(word == wanted or word.startswith(wanted + "/") for word in arguments(pid))
        and start_ticks(pid) is not None
    ]


def end_processes(pids: list[int], *, grace_s: float) -> list[int]:
    """SIGTERM, then SIGKILL after `grace_s` seconds; returns those that still live (none, unless not ours)."""
    ticks = {pid: start_ticks(pid) for pid in pids}
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        for pid in ticks:
            if is_same_process(pid, ticks[pid]):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
        if wait_until_gone(ticks, wait_s):
            return []
    return [pid for pid in ticks if is_same_process(pid, ticks[pid])]


def wait_until_gone(ticks: dict[int, int | None], timeout_s: float) -> bool:
    """True when every pid (with its start ticks) has ended within `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while any(is_same_process(pid, begun) for pid, begun in ticks.items()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@dataclass(frozen=True, slots=True)
class PortOwner:
    """Who listens on a port; `pid` is None when it belongs to another user."""

    pid: int | None
    command: str | None

    def __str__(self) -> str:
        if self.pid is None:
            return "a process of another user"
        return f"pid {self.pid} ({self.command or 'unknown command'})"


def is_port_free(host: str, port: int) -> bool:
    """True when a server could bind `host:port` now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str, near: int) -> int:
    """The first free port after `near`."""
    candidates = (port for port in range(near + 1, 65536) if is_port_free(host, port))
    return next(candidates, 0)


def port_owner(port: int) -> PortOwner | None:
    """Who listens on TCP `port` on any address of this machine, or None when nobody does."""
    inodes = set(_listening_inodes(port))
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for pid in _pids():
        with contextlib.suppress(OSError):
            for descriptor in (PROC / str(pid) / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(descriptor) in wanted:
                        return PortOwner(pid, command_line(pid))
    return PortOwner(None, None)


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _pids() -> list[int]:
    return sorted(int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())
