"""A file that arrives in ranges, in any order, and over any number of processes.

    <name>.part      the bytes, each at its final place; the file is sparse until all have come
    <name>.ranges    one line for what the file is (size and identity), then one line "start end" per range on disk

A range is noted only after its bytes are on the disk, so a kill or a power loss costs what came since the last `sync`,
and nothing that was noted is fetched again.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path


class Spans:
    """Byte ranges as sorted, disjoint pairs (start, end): what has come. `add` joins those that touch."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []

    @property
    def total(self) -> int:
        return sum(end - start for start, end in self._spans)

    def add(self, start: int, end: int) -> None:
        if start >= end:
            return
        apart = []
        for left, right in self._spans:
            if right < start or end < left:
                apart.append((left, right))
            else:
                start, end = min(start, left), max(end, right)
        self._spans = sorted([*apart, (start, end)])

    def take(self) -> list[tuple[int, int]]:
        """All pairs; it is empty afterwards."""
        taken, self._spans = self._spans, []
        return taken

    def gaps(self, size: int) -> list[tuple[int, int]]:
        """What is missing of 0…size."""
        missing, reached = [], 0
        for start, end in [*self._spans, (size, size)]:
            if reached < start:
                missing.append((reached, start))
            reached = end
        return missing


class PartFile:
    """One file on its way. `identity` tells one content from another (an ETag): what came of another is dropped.

    Thread-safe. Raises OSError.
    """

    def __init__(self, path: Path, size: int, identity: str) -> None:
        self.path = path
        self.size = size
        self._part = path.with_name(f"{path.name}.part")
        self._notes = path.with_name(f"{path.name}.ranges")
        self._head = f"{size} {identity}"
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._come = Spans()
        self._unnoted = Spans()
        self._take_up()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._data = os.open(self._part, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self._data, size)
        self._journal = os.open(self._notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if os.fstat(self._journal).st_size == 0:
            os.write(self._journal, f"{self._head}\n".encode())

    @property
    def present(self) -> int:
        """Bytes that have come."""
        with self._lock:
            return self._come.total

    def gaps(self) -> list[tuple[int, int]]:
        with self._lock:
            return self._come.gaps(self.size)

    def write(self, start: int, data: bytes) -> None:
        view = memoryview(data)
        position = start
        while view:
            written = os.pwrite(self._data, view, position)
            view, position = view[written:], position + written
        with self._lock:
            self._come.add(start, position)
            self._unnoted.add(start, position)

    def sync(self) -> None:
        """Bytes first, then the note of them, each down to the disk."""
        with self._sync_lock:
            if self._data >= 0:
                self._note()

    def finish(self) -> None:
        """The file under its name, once nothing is missing and its content is right."""
        self.close()
        os.replace(self._part, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name is safe before the notes go
        finally:
            os.close(folder)
        self._notes.unlink()

    def content(self) -> Path:
        """Where its bytes can be read before `finish`."""
        return self._part

    def close(self) -> None:
        """Notes what has come. May be called twice."""
        with self._sync_lock:
            if self._data >= 0:
                try:
                    self._note()
                finally:
                    os.close(self._data)
                    os.close(self._journal)
                    self._data = self._journal = -1

    def discard(self) -> None:
        """Everything that has come is wrong."""
        self.close()
        self._notes.unlink(missing_ok=True)
        self._part.unlink(missing_ok=True)

    def _note(self) -> None:
        with self._lock:
            fresh = self._unnoted.take()
        if fresh:
            os.fdatasync(self._data)
            os.write(self._journal, "".join(f"{start} {end}\n" for start, end in fresh).encode())
            os.fdatasync(self._journal)

    def _take_up(self) -> None:
        """Reads the notes of an earlier process; a last line that was cut off is no note."""
        try:
            head, *lines = self._notes.read_text().split("\n")
            if head != self._head or self._part.stat().st_size != self.size:
                raise ValueError("another file")
            for line in lines[:-1]:
                start, end = map(int, line.split())
                self._come.add(start, end)
            if lines and lines[-1]:
                os.truncate(self._notes, len("\n".join([head, *lines[:-1], ""]).encode()))
        except (FileNotFoundError, ValueError):
            self._come = Spans()
            self._notes.unlink(missing_ok=True)
            self._part.unlink(missing_ok=True)
