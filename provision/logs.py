"""Log files of a deployment: read, filtered by age, merged by time, followed.

A line is `2026-07-01T12:00:00.123Z text`. A line without a time belongs to the one before it.
"""

from __future__ import annotations

import heapq
import re
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from provision.errors import UsageError
from provision.target import LogLine, LogQuery

Level = Literal["error", "warning", "info", "debug"]

UNITS = ("engine", "server", "agent", "supervisor")
POLL_S = 0.2
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?)Z ")
_AGE = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)?")
_ERROR = re.compile(
    r"^\W*(error|critical|fatal)\b|^Traceback |^\w*(Error|Exception)\b|\bfailed with result\b", re.IGNORECASE
)
_WARNING = re.compile(r"^\W*warn(ing)?\b", re.IGNORECASE)
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}


def level_of(line: LogLine) -> Level:
    """The journal's priority where it says more than "a line of stderr"; else what the text begins with."""
    if line.priority is not None and line.priority <= 3:
        return "error"
    if line.priority == 4:
        return "warning"
    if line.priority == 7:
        return "debug"
    if _ERROR.search(line.text):
        return "error"
    return "warning" if _WARNING.search(line.text) else "info"


def parse_age(text: str) -> float:
    """Seconds in "90", "90s", "10m", "2h" or "1d". Raises UsageError."""
    match = _AGE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"--since: {text!r} is not a length of time", why="write it as 30s, 10m, 2h or 1d")
    return float(match[1]) * _SECONDS[match[2]]


def parse_lines(unit: str, lines: Iterable[str]) -> Iterator[LogLine]:
    """Takes the time off each line; a line without one inherits the time of the line before."""
    at: float | None = None
    for line in lines:
        match = _TIME.match(line)
        if match:
            at = datetime.fromisoformat(match[1]).replace(tzinfo=UTC).timestamp()
            line = line[match.end() :]
        # A progress bar redraws its line with carriage returns; its last state is what counts.
        yield LogLine(unit, line.rpartition("\r")[2], at)


def read_logs(folder: Path, query: LogQuery, *, now: float | None = None) -> Iterator[LogLine]:
    """Lines of the wanted units, oldest first; with `query.follow` new ones as they come, for ever."""
    oldest = None if query.since_s is None else (time.time() if now is None else now) - query.since_s
    units = query.units or UNITS
    tails = {unit: Tail(folder / f"{unit}.log") for unit in units}
    past = [
        [line for line in parse_lines(unit, tail.past()) if oldest is None or (line.at or 0.0) >= oldest]
        for unit, tail in tails.items()
    ]
    yield from heapq.merge(*past, key=lambda line: line.at or 0.0)
    while query.follow:
        fresh = [line for unit, tail in tails.items() for line in parse_lines(unit, tail.fresh())]
        yield from sorted(fresh, key=lambda line: line.at or 0.0)
        if not fresh:
            time.sleep(POLL_S)


def last_lines(folder: Path, unit: str, count: int) -> list[str]:
    """The newest `count` lines of a unit's log, without their times; empty when there is none."""
    return [line.text for line in parse_lines(unit, Tail(folder / f"{unit}.log").past())][-count:]


class Tail:
    """Reads a log that its writer appends to and rotates by renaming it to `<name>.1`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode: int | None = None
        self._offset = 0

    def past(self) -> list[str]:
        """All lines so far, the rotated file's first."""
        rotated = self._path.with_name(self._path.name + ".1")
        older = _read(rotated, 0)[0] if rotated.exists() else b""
        return _split(older) + self.fresh()

    def fresh(self) -> list[str]:
        """Whole lines written since the last call."""
        try:
            inode = self._path.stat().st_ino
        except FileNotFoundError:
            return []
        if self._inode is not None and inode != self._inode:
            rotated = self._path.with_name(self._path.name + ".1")
            rest = _read(rotated, self._offset)[0] if rotated.exists() else b""
            self._inode, self._offset = inode, 0
            return _split(rest) + self.fresh()
        self._inode = inode
        data, consumed = _read(self._path, self._offset)
        self._offset += consumed
        return _split(data)


def _read(path: Path, offset: int) -> tuple[bytes, int]:
    """Bytes from `offset` up to the last newline, and how many they are."""
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    end = data.rfind(b"\n") + 1
    return data[:end], end


def _split(data: bytes) -> list[str]:
    return data.decode("utf-8", "replace").split("\n")[:-1]
