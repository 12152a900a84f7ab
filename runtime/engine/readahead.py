"""Reads a model's files ahead of the loader, which maps them and would wait for the disk page by page.

    files, one after another   |1 1 1 1 1 1|2 2 2 2 2 2|3 3 …
                                   ^ loader    ^ readers, at most `window` bytes ahead of it

What is read stays in the system's page cache: the process holds the readers' buffers only. Ranks share the pieces out.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

from runtime.engine.memory import available_host_bytes
from runtime.model.group import Group

READERS = 4
PIECE = 4 * 2**20  # bytes, for each reader
WINDOW = 2 * 2**30  # bytes, or a quarter of the memory that is free


class ReadAhead:
    """Begins at once, and ends when the loader has taken everything. `read_bytes` have been read by this rank in
    `seconds` with one busy reader or more."""

    def __init__(self, files: list[Path], group: Group, window: int | None = None) -> None:
        self.read_bytes = 0
        self.seconds = 0.0
        self._window = min(WINDOW, available_host_bytes() // 4) if window is None else window
        sizes = [(file, file.stat().st_size) for file in files]
        pieces = [(file, offset) for file, size in sizes for offset in range(0, size, PIECE)]
        self._pieces = iter([(i * PIECE, *piece) for i, piece in enumerate(pieces)][group.rank :: group.size])
        self._taken = 0
        self._busy, self._since = 0, 0.0
        self._changed = threading.Condition()
        for number in range(READERS):
            threading.Thread(target=self._read, name=f"reader {number}", daemon=True).start()

    @property
    def gb_per_s(self) -> float:
        """10⁹ bytes per second while somebody read."""
        return self.read_bytes / 1e9 / max(self.seconds, 1e-3)

    def advance(self, count: int) -> None:
        """The loader has taken so many bytes more."""
        with self._changed:
            self._taken += count
            self._changed.notify_all()

    def _read(self) -> None:
        buffer = bytearray(PIECE)
        while (piece := self._next()) is not None:
            count = 0
            with contextlib.suppress(OSError), piece[0].open("rb", buffering=0) as file:  # the loader will say it
                file.seek(piece[1])
                count = file.readinto(buffer) or 0
            self._note(-1, count)

    def _next(self) -> tuple[Path, int] | None:
        with self._changed:
            start, file, offset = next(self._pieces, (0, None, 0))
            if file is None:
                return None
            self._changed.wait_for(lambda: start < self._taken + self._window)
            self._note(1, 0)
            return file, offset

    def _note(self, readers: int, count: int) -> None:
        with self._changed:
            now = time.monotonic()
            self.seconds += (now - self._since) * (self._busy > 0)
            self._since = now
            self._busy += readers
            self.read_bytes += count
