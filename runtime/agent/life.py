"""The machine's own end: a backstop behind the cloud's timer, which terminates it at `expires_at`.

A machine that still runs well after that has lost its timer; it switches itself off. On AWS that terminates it, unless
it is a spot instance; on Alibaba Cloud the billing of a switched-off machine goes on, but nothing is served any more.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import msgspec

from runtime.mailbox import LIFE, Life, Mailbox, decode_life

GRACE_S = 300.0  # the cloud's timer comes first
REPEAT_S = 60.0  # a command that was not followed by the end
TOOL_TIMEOUT_S = 10.0

Run = Callable[[tuple[str, ...]], str]
"""Runs a command and returns its output; raises OSError or subprocess.SubprocessError."""


def power_off_argv() -> tuple[str, ...]:
    return ("systemctl", "poweroff")


def clock_argv() -> tuple[str, ...]:
    """Prints `yes` when the kernel's clock is disciplined by any NTP client."""
    return ("timedatectl", "show", "--property=NTPSynchronized", "--value")


def is_overdue(life: Life, now: float) -> bool:
    """`now`: seconds since the epoch."""
    return life.expires_at is not None and now >= life.expires_at + GRACE_S


def run_command(argv: tuple[str, ...]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=TOOL_TIMEOUT_S).stdout


class LifeWatch:
    """`check` often. `last_words` is called once, before the machine is switched off."""

    def __init__(
        self,
        mailbox: Mailbox,
        last_words: Callable[[], None],
        run: Run = run_command,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._mailbox = mailbox
        self._last_words = last_words
        self._run = run
        self._clock = clock
        self._ordered_at: float | None = None
        self._unreadable: bytes | None = None

    def check(self) -> None:
        """A clock that is not synchronised ends nothing: it may be years ahead."""
        now = self._clock()
        if not is_overdue(self._life(), now) or not self._is_synchronised():
            return
        if self._ordered_at is None:
            print("the machine is past its end, and the cloud's timer has not come: power off", file=sys.stderr)
            self._last_words()
        elif now < self._ordered_at + REPEAT_S:
            return
        self._ordered_at = now
        self._run(power_off_argv())

    def _life(self) -> Life:
        data = self._mailbox.get(LIFE)
        if data is None:
            return Life()
        try:
            return decode_life(data)
        except msgspec.DecodeError as error:
            if data != self._unreadable:
                print(f"{LIFE}: {error}; the machine has no end of its own", file=sys.stderr)
            self._unreadable = data
            return Life()

    def _is_synchronised(self) -> bool:
        try:
            return self._run(clock_argv()).strip() == "yes"
        except (OSError, subprocess.SubprocessError):
            return False
