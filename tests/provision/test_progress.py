"""provision.progress: what is shown while a deployment starts, and when waiting ends."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace

import pytest

from provision.errors import FailedError
from provision.local import judge
from provision.progress import (
    BarDisplay,
    LineDisplay,
    format_seconds,
    is_rolled_back,
    is_settled,
    wait_until_settled,
)
from provision.target import Access, LogLine, LogQuery, Observation, Removal
from runtime.mailbox import Phase, Status

STARTING = Observation("chat", "local", "starting", wanted_release="r2", release="r2", phase="weights")
READY = replace(STARTING, life="ready", phase="ready", percent=100.0)


class Script:
    """A target that shows these observations one after the other, the last one for ever."""

    name = "chat"

    def __init__(self, *seen: Observation) -> None:
        self._seen: Iterator[Observation] = iter(seen)
        self._last = seen[-1]

    def observe(self) -> Observation:
        return next(self._seen, self._last)

    def start(self, order: object) -> None: ...

    def change(self, order: object) -> None: ...

    def go_back(self, release: str) -> None: ...

    def stop(self) -> None: ...

    def access(self) -> Access:
        return Access("", "", "", 0)

    def logs(self, query: LogQuery) -> Iterator[LogLine]:
        return iter(())

    def remove(self) -> Removal:
        return Removal("chat", (), (), None, True, None, 0.0)


def status(phase: Phase, release: str = "r2", error: str | None = None) -> Status:
    return Status(instance_id="x", release=release, phase=phase, updated_at=0.0, error=error)


@pytest.mark.parametrize(
    ("seen", "alive", "life"),
    [
        (None, False, "stopped"),
        (status("ready"), False, "stopped"),
        (None, True, "starting"),
        (status("weights"), True, "starting"),
        (status("ready"), True, "ready"),
        (status("ready", release="r1"), True, "starting"),  # the agent has not looked yet
        (status("ready", release="r1", error="release r2 failed"), True, "ready"),  # rolled back
        (status("load", release="r1", error="going back"), True, "starting"),
        (status("weights", error="no network"), True, "failed"),
        (status("stopped"), True, "stopped"),
    ],
)
def test_the_life_of_a_deployment_follows_from_what_is_reported(seen: Status | None, alive: bool, life: str) -> None:
    assert judge("r2", seen, alive=alive) == life


def test_waiting_ends_when_the_release_is_ready() -> None:
    target = Script(STARTING, replace(STARTING, phase="load"), READY)
    assert wait_until_settled(target, "r2", LineDisplay(io.StringIO())) == READY


def test_an_older_release_that_is_ready_does_not_end_the_wait() -> None:
    assert not is_settled(replace(READY, release="r1"), "r2")


def test_a_rollback_ends_the_wait_only_when_it_is_about_this_release() -> None:
    back = replace(READY, release="r1", error="release r2 failed in phase load: x; release r1 still serves")
    assert is_settled(back, "r2")
    assert is_rolled_back(back, "r2")
    assert not is_settled(back, "r3")


@pytest.mark.parametrize("life", ["failed", "stopped"])
def test_failure_and_stop_end_the_wait(life: str) -> None:
    assert is_settled(Observation("chat", "local", life, release="r2"), "r2")  # type: ignore[arg-type]


def test_waiting_gives_up_on_no_progress_and_not_on_time() -> None:
    moving = [replace(STARTING, percent=float(percent)) for percent in range(8)]
    seconds = iter(range(0, 10_000, 100))
    with pytest.raises(FailedError, match="no progress for 150 s in phase weights"):
        wait_until_settled(
            Script(*moving), "r2", LineDisplay(io.StringIO()), silence_limit_s=150, clock=lambda: next(seconds)
        )
    assert next(seconds) > 800  # all eight moves were waited for


def test_plain_progress_is_one_line_per_phase_and_ten_percent() -> None:
    stream = io.StringIO()
    display = LineDisplay(stream)
    for percent in (None, 1.0, 9.0, 11.0, 12.0, 95.0):
        display.show(replace(STARTING, percent=percent, eta_s=None if percent is None else 4.0))
    display.show(replace(STARTING, phase="load", percent=None))
    assert stream.getvalue().splitlines() == [
        "  weights",
        "  weights 11 %, about 4 s left",
        "  weights 95 %, about 4 s left",
        "  load",
    ]


def test_bars_show_every_phase(capsys: pytest.CaptureFixture[str]) -> None:
    with BarDisplay() as display:
        display.show(replace(STARTING, phase="load", percent=50.0))
        display.show(READY)
    shown = capsys.readouterr().err
    assert "Model weights" in shown
    assert "Load into memory" in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (4200, "1 h 10 min"), (90000, "1 d 1 h")],
)
def test_times_read_well(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
