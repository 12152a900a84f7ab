"""Waiting for a deployment: polls what the target observes, shows it, and gives up on no progress only."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, TextIO

from provision.errors import FailedError
from provision.target import Deployed, Observation
from runtime.mailbox import PHASES

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

POLL_S = 0.2
SILENCE_LIMIT_S = 180.0  # without any change in what the machine reports
PERCENT_STEP = 10  # a plain display prints a line per this many percent

PHASE_NAMES = {
    "python": "Python environment",
    "disk": "Disk space",
    "driver": "Compute device",
    "runtime": "Runtime packages",
    "weights": "Model weights",
    "load": "Load into memory",
    "serve": "First request",
}


class Display(Protocol):
    """Shows observations as they come. A context manager."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, seen: Observation) -> None: ...


def wait_until_settled(
    target: Deployed,
    release: str,
    display: Display,
    *,
    silence_limit_s: float = SILENCE_LIMIT_S,
    poll_s: float = POLL_S,
    clock: Callable[[], float] = time.monotonic,
) -> Observation:
    """Returns once `release` is ready, has failed, was rolled back, or the deployment is stopped.

    Raises FailedError when nothing has changed for `silence_limit_s` seconds.
    """
    last_change = clock()
    last: Observation | None = None
    with display:
        while True:
            seen = target.observe()
            if last is None or _signs(seen) != _signs(last):
                last_change, last = clock(), seen
                display.show(seen)
            if is_settled(seen, release):
                return seen
            if clock() - last_change > silence_limit_s:
                raise FailedError(
                    f"{seen.name} made no progress for {silence_limit_s:.0f} s in phase {seen.phase or 'start'}",
                    why="it goes on in the background; its logs may say what it waits for",
                    next_command=f"deployctl logs {seen.name} --since 5m",
                )
            time.sleep(poll_s)


def is_settled(seen: Observation, release: str) -> bool:
    """True when waiting longer for `release` cannot help."""
    if seen.life in ("stopped", "failed"):
        return True
    return seen.life == "ready" and (seen.release == release or is_rolled_back(seen, release))


def is_rolled_back(seen: Observation, release: str) -> bool:
    """True when `release` has failed and the one before serves again."""
    return (
        seen.life == "ready"
        and seen.release != release
        and seen.error is not None
        and f"release {release} " in seen.error
    )


def failing_unit(seen: Observation) -> Literal["engine", "agent"]:
    """Whose log says more about a failure."""
    return "engine" if seen.phase in ("load", "serve", "ready") else "agent"


def reported_failure(seen: Observation, unit: str | None = None, tail: Iterable[str] = ()) -> FailedError:
    """The error of a failed deployment: what the machine reported. `unit`: whose log explains it, with the lines of its
    end where they are at hand; None = any."""
    phase = f" in phase {seen.phase}" if seen.phase else ""
    why = [line for line in (seen.hint, *(f"{unit}: {text}" for text in tail)) if line]
    command = f"deployctl logs {seen.name}"
    return FailedError(
        f"{seen.name} failed{phase}: {seen.error}",
        why="\n".join(why) or None,
        next_command=f"{command} --{unit}" if unit else command,
    )


def _signs(seen: Observation) -> tuple[object, ...]:
    """What must change for the deployment to count as alive. Agents touch `updated_at` while they work."""
    return (seen.life, seen.release, seen.phase, seen.percent, seen.bytes, seen.error, seen.updated_at)


def make_display(stream: TextIO | None = None) -> Display:
    """Bars on a terminal, plain lines elsewhere; both on stderr."""
    stream = stream or sys.stderr
    return BarDisplay() if stream.isatty() else LineDisplay(stream)


def format_seconds(seconds: float) -> str:
    """ "8 s", "2 min 05 s", "1 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def progress_text(seen: Observation) -> str:
    """ "weights 43 %, about 12 s left"."""
    text = seen.phase or "starting"
    if seen.percent is not None:
        text += f" {seen.percent:.0f} %"
    if seen.eta_s is not None:
        text += f", about {format_seconds(seen.eta_s)} left"
    return text


def held_text(seen: Observation) -> str | None:
    """ "requests were held for 4.3 s", after a release has taken over from another one."""
    return None if seen.held_s is None else f"requests were held for {seen.held_s:.1f} s"


def clients_text(hold_max_s: float, last: float | None) -> str:
    """What clients will see while a release takes over. `last`: how long it took the last time, in seconds."""
    known = "" if last is None else f" (the last time {last:.1f} s)"
    return (
        f"  clients: the memory holds one copy of a model, so new requests wait while the next one loads{known}, "
        f"each for {hold_max_s:.0f} s at most and then with 503; those that run come to their end; "
        "nobody is refused or cut off"
    )


@dataclass(slots=True)
class LineDisplay:
    """One line when a phase begins and for each further ten percent: for logs and CI."""

    stream: TextIO
    _shown: tuple[str | None, int] = (None, -1)

    def __enter__(self) -> LineDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, seen: Observation) -> None:
        if seen.phase is None:
            return
        step = int((seen.percent or 0.0) // PERCENT_STEP)
        if (seen.phase, step) != self._shown:
            self._shown = (seen.phase, step)
            self.stream.write(f"  {progress_text(seen)}\n")
            self.stream.flush()


class BarDisplay:
    """One bar per phase that has begun; those before the current one are full."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> BarDisplay:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        for phase in PHASES:
            name = PHASE_NAMES[phase]
            self._tasks[phase] = self._progress.add_task(name, total=100, visible=False, note="")
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, seen: Observation) -> None:
        if self._progress is None or seen.phase is None:
            return
        position = PHASES.index(seen.phase) if seen.phase in PHASES else len(PHASES)
        if seen.phase == "stopped":
            return
        for index, phase in enumerate(PHASES):
            task = self._tasks[phase]
            if index < position:
                self._progress.update(task, completed=100, visible=True, note="")
            elif index == position:
                left = f"about {format_seconds(seen.eta_s)} left" if seen.eta_s is not None else ""
                self._progress.update(task, completed=seen.percent or 0.0, visible=True, note=left)
