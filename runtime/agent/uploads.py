"""Logs in the mailbox: the newest lines of each unit, so that `deployctl logs` needs no SSH.

status/logs/agent.log, server.log, engine.log   one line per line: `2026-07-01T12:00:00.123Z text`
status/logs/boot.log                            cloud-init and stage 0
status/logs/kernel.log                          the kernel's warnings since boot: Xid events, memory, disks
"""

from __future__ import annotations

import subprocess
import time
from collections import deque
from collections.abc import Callable

import msgspec

from runtime.agent.logs import MAX_LINE, stamp
from runtime.mailbox import LOGS, Mailbox
from runtime.vm import LOG_UNITS

MOST_BYTES = 256 * 1024  # per log
FIRST_LINES = 3000  # of the journal, when the agent starts
EVERY_S = 30.0
TOOL_TIMEOUT_S = 20.0
WANTED = {name: tuple(f"--unit={unit}" for unit in units) for name, units in LOG_UNITS.items()} | {
    "kernel": ("--dmesg", "--priority=warning")
}
"""What journalctl is asked for, by log."""
Run = Callable[[tuple[str, ...]], bytes]


class _Entry(msgspec.Struct, frozen=True):
    """One line of `journalctl --output=json`. A message that is no UTF-8 comes as a list of bytes; a huge one as
    null."""

    cursor: str = msgspec.field(name="__CURSOR")
    at: str = msgspec.field(name="__REALTIME_TIMESTAMP")  # microseconds since the epoch
    message: str | list[int] | None = msgspec.field(name="MESSAGE", default=None)


def journal_argv(wanted: tuple[str, ...], cursor: str | None) -> tuple[str, ...]:
    """What the journal holds of what is wanted: the newest lines, or all after `cursor`."""
    begin = f"--lines={FIRST_LINES}" if cursor is None else f"--after-cursor={cursor}"
    return (
        "journalctl",
        "--output=json",
        "--output-fields=MESSAGE",
        "--no-pager",
        "--quiet",
        begin,
        *wanted,
    )


def run_command(argv: tuple[str, ...]) -> bytes:
    return subprocess.run(argv, capture_output=True, check=True, timeout=TOOL_TIMEOUT_S).stdout


class Log:
    """The newest lines of one log; together at most `most_bytes`."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.cursor: str | None = None
        self._most_bytes = most_bytes
        self._lines: deque[bytes] = deque()
        self._size = 0

    def feed(self, output: bytes) -> bool:
        """Takes the journal's JSON lines. True when there were any."""
        grown = False
        for line in output.splitlines():
            entry = msgspec.json.decode(line, type=_Entry)
            self.cursor = entry.cursor
            for text in _text(entry.message).splitlines():
                self._add(f"{stamp(int(entry.at) / 1e6)} {text[:MAX_LINE]}\n".encode())
            grown = True
        return grown

    def content(self) -> bytes:
        return b"".join(self._lines)

    def _add(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)
        while self._size > self._most_bytes:
            self._size -= len(self._lines.popleft())


class Uploads:
    """`upload` often; what is new goes out every `EVERY_S` seconds, or at once after `hurry`."""

    def __init__(self, mailbox: Mailbox, run: Run = run_command, clock: Callable[[], float] = time.monotonic) -> None:
        self._mailbox = mailbox
        self._run = run
        self._clock = clock
        self._logs = {name: Log() for name in WANTED}
        self._due_at = 0.0

    def hurry(self) -> None:
        self._due_at = 0.0

    def upload(self) -> None:
        """Raises OSError or subprocess.SubprocessError when the journal cannot be read."""
        now = self._clock()
        if now < self._due_at:
            return
        self._due_at = now + EVERY_S
        for name, log in self._logs.items():
            if log.feed(self._run(journal_argv(WANTED[name], log.cursor))):
                self._mailbox.put(f"{LOGS}{name}.log", log.content())


def _text(message: str | list[int] | None) -> str:
    if isinstance(message, list):
        return bytes(byte & 0xFF for byte in message).decode("utf-8", "replace")
    return message or ""
