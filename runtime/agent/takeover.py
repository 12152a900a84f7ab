"""The agent's word to the server while a release takes over: the file `handover.json` in the run folder."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runtime.agent.files import Access
from runtime.deployment import encode
from runtime.handover import HANDOVER, PROBED, Handover, Probed, ProcessId, read_handover, read_probed


@dataclass(frozen=True, slots=True)
class Takeover:
    """`run_dir`: where server and engine have their sockets. Every method is safe to repeat."""

    run_dir: Path
    access: Access

    def read(self) -> Handover | None:
        return read_handover(self.run_dir)

    def begin(self, release: str, predecessor: ProcessId | None) -> Handover:
        """Requests to the server of `release` wait from now on. One that has begun goes on."""
        found = self.read()
        if found is None or found.release != release or not found.held:
            before = None if predecessor is None else str(predecessor)
            found = self._write(Handover(release=release, began_at=time.time(), held=True, predecessor=before))
        return found

    def began(self) -> None:
        """The new server accepts: only from now on anybody waits."""
        found = self.read()
        if found is not None:
            self._write(msgspec.structs.replace(found, began_at=time.time()))

    def ask(self, release: str) -> str:
        """Has the server put its question to the engine; returns the question's name."""
        found = self.read()
        if found is None or found.release != release:
            found = Handover(release=release, began_at=time.time())
        probe = uuid.uuid4().hex
        self._write(msgspec.structs.replace(found, probe=probe))
        return probe

    def answer(self, probe: str) -> Probed | None:
        found = read_probed(self.run_dir)
        return found if found is not None and found.probe == probe else None

    def end(self) -> float | None:
        """Nobody waits any more. Seconds that requests were held, None when they were not."""
        found = self.read()
        (self.run_dir / HANDOVER).unlink(missing_ok=True)
        (self.run_dir / PROBED).unlink(missing_ok=True)
        return max(0.0, time.time() - found.began_at) if found is not None and found.held else None

    def _write(self, handover: Handover) -> Handover:
        self.access.write(self.run_dir / HANDOVER, encode(handover))
        return handover
