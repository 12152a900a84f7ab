"""What the agent says about itself: progress of a phase, errors of a phase, and the mailbox's status
object."""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from runtime.mailbox import STATUS, Mailbox, Phase, Status, encode_status

MIN_INTERVAL_S = 0.25  # between two writes that differ in progress only; a bucket wants more
HEARTBEAT_S = 10.0  # an unchanged status is written again: a reader can tell a quiet agent from a dead one
PACE_WINDOW_S = 20.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a phase is: percent 0…100, bytes done, seconds to go. None = not known."""

    percent: float | None = None
    bytes: int | None = None
    eta_s: float | None = None


Report = Callable[[Progress], None]
"""Called often (at least every 0.5 s) by everything that takes long. It may raise to interrupt the work."""


class PhaseError(Exception):
    """A phase cannot go on. `retry`: trying again later may help without a new release."""

    def __init__(self, error: str, hint: str, *, retry: bool = True) -> None:
        super().__init__(error)
        self.error = error
        self.hint = hint
        self.retry = retry


class Pace:
    """Time to go, from the amounts of the last `PACE_WINDOW_S` seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()

    def eta_s(self, now: float, done: float, total: float) -> float | None:
        """`done` and `total` in any one unit. None until something has moved."""
        self._seen.append((now, done))
        while self._seen[0][0] < now - PACE_WINDOW_S:
            self._seen.popleft()
        first_at, first_done = self._seen[0]
        if now <= first_at or done <= first_done:
            return None
        return (total - done) * (now - first_at) / (done - first_done)


class StatusBoard:
    """Writes `status/status.json`; unchanged or too frequent updates are left out."""

    def __init__(
        self, mailbox: Mailbox, instance_id: str | None = None, min_interval_s: float = MIN_INTERVAL_S
    ) -> None:
        self._mailbox = mailbox
        self._min_interval_s = min_interval_s
        self._instance_id = instance_id or f"host:{socket.gethostname()}"
        self._written: Status | None = None
        self._written_at = 0.0

    def post(
        self,
        release: str,
        phase: Phase,
        progress: Progress | None = None,
        *,
        error: str | None = None,
        hint: str | None = None,
        held_s: float | None = None,
    ) -> None:
        done = progress or Progress()
        status = Status(
            instance_id=self._instance_id,
            release=release,
            phase=phase,
            updated_at=time.time(),
            percent=None if done.percent is None else round(done.percent, 1),
            bytes=done.bytes,
            eta_s=None if done.eta_s is None else round(done.eta_s, 1),
            error=error,
            hint=hint,
            held_s=None if held_s is None else round(held_s, 1),
        )
        now = time.monotonic()
        if self._written is None or self._is_due(status, self._written, now - self._written_at):
            self._mailbox.put(STATUS, encode_status(status))
            self._written, self._written_at = status, now

    def repeat(self) -> None:
        """Says the same again when it is time for a sign of life."""
        now = time.monotonic()
        if self._written is not None and now - self._written_at >= HEARTBEAT_S:
            self._written = msgspec.structs.replace(self._written, updated_at=time.time())
            self._mailbox.put(STATUS, encode_status(self._written))
            self._written_at = now

    def _is_due(self, new: Status, old: Status, age_s: float) -> bool:
        if (new.release, new.phase, new.error, new.hint) != (old.release, old.phase, old.error, old.hint):
            return True
        changed = msgspec.structs.replace(new, updated_at=old.updated_at) != old
        return age_s >= (self._min_interval_s if changed else HEARTBEAT_S)
