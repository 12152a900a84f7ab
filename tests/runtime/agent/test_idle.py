"""When a machine that nobody asks anything should stop."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from runtime.agent.idle import KEPT, IdleClock, judge_idleness
from runtime.handover import ACTIVITY
from runtime.mailbox import Life

NOW = 1_800_000_000.0
HALF_AN_HOUR = Life(idle_stop_s=1800)


@pytest.fixture
def clock(tmp_path: Path) -> IdleClock:
    (tmp_path / "run").mkdir()
    return IdleClock(tmp_path / "run", tmp_path)


def asked_at(folder: Path, at: float) -> None:
    (folder / "run" / ACTIVITY).touch()
    os.utime(folder / "run" / ACTIVITY, (at, at))


@pytest.mark.parametrize(
    ("quiet_s", "state"), [(0, "busy"), (1499, "busy"), (1500, "warning"), (1799, "warning"), (1800, "due")]
)
def test_it_warns_five_minutes_before_it_is_due(quiet_s: int, state: str) -> None:
    assert judge_idleness(HALF_AN_HOUR, NOW - quiet_s, NOW).state == state


def test_a_short_time_is_warned_of_in_its_last_fifth() -> None:
    assert judge_idleness(Life(idle_stop_s=300), NOW - 239, NOW).state == "busy"
    assert judge_idleness(Life(idle_stop_s=300), NOW - 240, NOW).state == "warning"


def test_nothing_is_due_where_nobody_has_asked_for_it() -> None:
    assert judge_idleness(Life(), NOW - 10**9, NOW).state == "busy"


def test_the_count_begins_when_a_release_is_ready(clock: IdleClock, tmp_path: Path) -> None:
    assert clock.look(HALF_AN_HOUR, time.time() + 10**6).state == "busy"
    clock.start(HALF_AN_HOUR, "r1")
    assert clock.look(HALF_AN_HOUR, time.time() + 1700).state == "warning"
    assert clock.look(HALF_AN_HOUR, time.time() + 1801).state == "due"


def test_a_request_begins_it_anew(clock: IdleClock, tmp_path: Path) -> None:
    clock.start(HALF_AN_HOUR, "r1")
    asked_at(tmp_path, time.time() + 1000)
    assert clock.look(HALF_AN_HOUR, time.time() + 2700).state == "warning"


def test_a_boot_does_not(clock: IdleClock, tmp_path: Path) -> None:
    """The run folder is empty then, and the release is ready once more."""
    clock.start(HALF_AN_HOUR, "r1")
    asked_at(tmp_path, time.time() + 1000)
    clock.look(HALF_AN_HOUR, time.time() + 1010)
    (tmp_path / "run" / ACTIVITY).unlink()
    again = IdleClock(tmp_path / "run", tmp_path)
    again.start(HALF_AN_HOUR, "r1")
    assert again.look(HALF_AN_HOUR, time.time() + 2810).state == "due"


def test_a_redeploy_and_a_wake_do(clock: IdleClock, tmp_path: Path) -> None:
    clock.start(HALF_AN_HOUR, "r1")
    long_ago = time.time() - 5000
    os.utime(tmp_path / KEPT, (long_ago, long_ago))
    woken = Life(idle_stop_s=1800, woken_at=int(time.time()) - 60)
    assert clock.look(woken, time.time()).state == "due"
    clock.start(woken, "r1")
    assert clock.look(woken, time.time()).state == "busy"

    os.utime(tmp_path / KEPT, (long_ago, long_ago))
    clock.start(HALF_AN_HOUR, "r2")
    assert clock.look(HALF_AN_HOUR, time.time()).state == "busy"


def test_a_clock_that_was_set_back_keeps_no_machine_for_ever(clock: IdleClock, tmp_path: Path) -> None:
    clock.start(HALF_AN_HOUR, "r1")
    asked_at(tmp_path, time.time() + 10**8)
    assert clock.look(HALF_AN_HOUR, time.time()).state == "busy"
    (tmp_path / "run" / ACTIVITY).unlink()
    left = clock.look(HALF_AN_HOUR, time.time()).stops_in_s
    assert left is not None
    assert left <= 1800
