"""When a machine has had no request for long enough that it should stop.

    last request ─────── quiet ─────── warning ──── stop
                 ◄──────── idle_stop_s ────────►
                                 ◄─ warning_s ─►

The server touches a file while it has requests (runtime.server.activity); its time is the last request, on the clock of
the wall, so that a restart of the server, of the agent or of the machine starts no new count. What does start one: a
release that is ready for the first time, or for the first time since the machine was woken.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from runtime.agent.power import PowerError
from runtime.agent.releases import Release
from runtime.agent.status import StatusBoard
from runtime.agent.units import UnitError
from runtime.handover import ACTIVITY
from runtime.mailbox import LIFE, Life, Mailbox, decode_life

KEPT = "last-request"  # in the state folder, with the release that is served: the run folder is empty after a boot
WARNING_S = 300.0
WARNING_SHARE = 0.2  # of a short idle_stop_s
REPEAT_S = 60.0  # an order that was refused, or not followed by the end
MINUTE = 60


@dataclass(frozen=True, slots=True)
class Idleness:
    """`stops_in_s`: seconds until the machine should stop; None = it never should."""

    state: Literal["busy", "warning", "due"]
    stops_in_s: float | None = None


BUSY = Idleness("busy")


def judge_idleness(life: Life, last_request_at: float, now: float) -> Idleness:
    """`last_request_at`, `now`: seconds since the epoch. Pure."""
    if life.idle_stop_s <= 0:
        return BUSY
    left = last_request_at + life.idle_stop_s - now
    if left <= 0:
        return Idleness("due", 0.0)
    warning_s = min(WARNING_S, life.idle_stop_s * WARNING_SHARE)
    return Idleness("warning" if left <= warning_s else "busy", left)


class IdleClock:
    """The time of the last request, kept over boots. Files' times are the only state."""

    def __init__(self, run_dir: Path, state: Path) -> None:
        self._activity = run_dir / ACTIVITY
        self._kept = state / KEPT

    def start(self, life: Life, release: str) -> None:
        """`release` is ready. The count begins now, unless it was ready before and has not been woken since."""
        kept = _modified_at(self._kept)
        known = kept is not None and kept >= (life.woken_at or 0) and self._kept.read_text() == release
        if not known:
            self._kept.write_text(release)
            os.utime(self._kept)

    def look(self, life: Life, now: float) -> Idleness:
        kept, seen = _modified_at(self._kept), _modified_at(self._activity)
        if kept is None:
            return BUSY
        last = min(max(kept, seen or 0.0), now)  # a clock that was set back must not keep a machine for ever
        if seen is not None and seen > kept:
            os.utime(self._kept, (seen, seen))
        return judge_idleness(life, last, now)


class IdleStop:
    """Switches the machine off when it is due. Asked while a release is ready and nothing is changed, so never during a
    redeploy. `switch_off` raises PowerError or UnitError."""

    def __init__(self, clock: IdleClock, mailbox: Mailbox, board: StatusBoard, switch_off: Callable[[], None]) -> None:
        self._clock = clock
        self._mailbox = mailbox
        self._board = board
        self._switch_off = switch_off
        self._again_at = 0.0
        self._ordered = False
        self.warning: str | None = None  # for the status of a release that is ready

    def begin(self, release: Release) -> None:
        self._clock.start(self._life(), release.id)

    @property
    def is_ending(self) -> bool:
        """The order was given a moment ago: what stops now stops because of it."""
        return self._ordered and time.time() < self._again_at

    def is_over(self, release: Release) -> bool:
        """True: the machine was told to switch off, and the status says so."""
        now = time.time()
        if now < self._again_at:
            return self.is_ending
        life = self._life()
        idleness = self._clock.look(life, now)
        self._ordered, self.warning = False, None
        if idleness.state == "warning" and idleness.stops_in_s is not None:
            minutes = -(-int(idleness.stops_in_s) // MINUTE)
            self.warning = f"no request for a while: it stops in {minutes} min unless one comes"
        if idleness.state == "due":
            self._end(release, life, now)
        return self._ordered

    def _end(self, release: Release, life: Life, now: float) -> None:
        reason = f"no request for {_span(life.idle_stop_s)} (idle_stop)"
        self._board.post(release.id, "stopped", error=reason, hint=f"deployctl wake {release.deployment.name}")
        self._again_at = now + REPEAT_S
        try:
            self._switch_off()
            self._ordered = True
        except (PowerError, UnitError) as error:
            self.warning = f"{reason}, and it cannot stop itself: {error}"
            print(self.warning, file=sys.stderr, flush=True)

    def _life(self) -> Life:
        """One that cannot be read asks for nothing; LifeWatch says so."""
        try:
            return decode_life(self._mailbox.get(LIFE) or b"{}")
        except msgspec.DecodeError:
            return Life()


def _span(seconds: int) -> str:
    return f"{seconds // MINUTE} min" if seconds >= MINUTE else f"{seconds} s"


def _modified_at(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None
