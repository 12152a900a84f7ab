"""Log files of units: one line per line, each with the time at which it arrived, rotated by size.

    2026-07-01T12:00:00.123Z text of the line

The supervisor writes them from the units' pipes, so the last words of a process killed with SIGKILL are kept.
"""

from __future__ import annotations

import os
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path

MAX_BYTES = 8 * 2**20  # per file; one older file is kept beside it as `<name>.1`
MAX_LINE = 64 * 1024  # bytes; a longer line is cut into several
TAIL_LINES = 12


def stamp(at: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC with milliseconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _shown(line: bytes) -> str:
    """What a terminal would show in the end: a progress bar writes over itself with carriage returns."""
    return line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2]


class LogFile:
    """Append-only. `tail` holds the newest lines without their times."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._path = path
        self._max_bytes = max_bytes
        self._partial = b""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = self._open()

    def feed(self, data: bytes) -> None:
        """Raw bytes of a pipe: whole lines are written, the rest waits for its end."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) >= MAX_LINE:
            lines.append(self._partial)
            self._partial = b""
        self._write([_shown(line) for line in lines])

    def end(self) -> None:
        """The writer is gone: what it left without a newline is a line too."""
        if self._partial:
            self.feed(b"\n")

    def line(self, text: str) -> None:
        self._write(text.split("\n"))

    def close(self) -> None:
        self.end()
        os.close(self._fd)

    def _write(self, lines: list[str]) -> None:
        if not lines:
            return
        prefix = stamp(time.time())
        self.tail.extend(line for line in lines if line.strip())
        data = "".join(f"{prefix} {line}\n" for line in lines).encode()
        try:
            if self._size + len(data) > self._max_bytes:
                self._rotate()
            self._size += os.write(self._fd, data)
        except OSError:
            return  # a full disk must not take the units down with it; `tail` still has the lines

    def _rotate(self) -> None:
        os.replace(self._path, self._path.with_name(self._path.name + ".1"))
        os.close(self._fd)
        self._fd = self._open()

    def _open(self) -> int:
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(fd).st_size
        return fd
