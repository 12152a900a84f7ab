"""One unit's processes under the supervisor: spawn, output, exit, back-off, stop, and the hand-over to the next.

             start            exit nobody asked for
    stopped ───────► running ─────────────────────► waiting ──back-off──► running
       ▲              │   │ stop                       │ crash loop, exit 78
       └── stopping ◄─┼───┘                            └────────────────► failed
                      └ replace: `_next` beside `_main`; once it has announced itself it is `_main`,
                        and the one before is among `_leaving` until it has ended

All methods belong to the supervisor's one thread: the kernel ties the parent-death signal to the thread that
spawned.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from runtime.agent.child import bound_argv
from runtime.agent.logs import LogFile
from runtime.agent.units import (
    EXIT_CONFIG,
    RELEASE_MARK,
    RestartHistory,
    RestartPolicy,
    State,
    UnitError,
    UnitSpec,
    UnitState,
)
from runtime.handover import NOTIFY_SOCKET, PREDECESSOR, ProcessId

PACKAGES = "site"  # in a release's folder: what goes before the installed packages (runtime/agent/overlay.py)
_READ = 65536


@dataclass(slots=True)
class Child:
    """One process. `output`: read end of its stdout and stderr; `partial`: what came after the last newline."""

    process: subprocess.Popen[bytes]
    output: int | None
    release: str | None
    partial: bytes = b""
    started_at: float = field(default_factory=time.monotonic)

    @property
    def pid(self) -> int:
        return self.process.pid


class UnitProcess:
    """`pid` is set exactly while the main process is not reaped; `is_alive` while any is."""

    def __init__(
        self,
        spec: UnitSpec,
        log: LogFile,
        *,
        current: Path,
        listen_fd: int | None,
        policy: RestartPolicy,
        notify_path: Path | None = None,
        before_close: Callable[[int], None] = lambda fd: None,
    ) -> None:
        self.spec = spec
        self.log = log
        self.state: State = "stopped"
        self.exits = 0
        self.exit_code: int | None = None
        self.release: str | None = None
        self._current = current
        self._listen_fd = listen_fd if spec.listens else None
        self._notify_path = notify_path if spec.listens else None
        self._policy = policy
        self._before_close = before_close
        self._history = RestartHistory(policy)
        self._main: Child | None = None
        self._next: Child | None = None
        self._leaving: list[Child] = []
        self._deadline: float | None = None  # of the back-off while waiting, of SIGTERM while stopping
        self._start_again = False

    @property
    def pid(self) -> int | None:
        return None if self._main is None else self._main.pid

    @property
    def is_alive(self) -> bool:
        return bool(self._children())

    @property
    def deadline(self) -> float | None:
        """When `tick` has something to do, on time.monotonic's clock."""
        return self._deadline

    def outputs(self) -> Iterator[tuple[int, Callable[[], None]]]:
        """(pipe, what to call when it can be read) of each process."""
        for child in self._children():
            if child.output is not None:
                yield child.output, lambda child=child: self._read(child)  # type: ignore[misc]

    def snapshot(self) -> UnitState:
        return UnitState(
            name=self.spec.name,
            state=self.state,
            pid=self.pid,
            release=self.release,
            exits=self.exits,
            exit_code=self.exit_code,
            last_lines=tuple(self.log.tail),
        )

    def start(self) -> None:
        """Forgets earlier crashes. A unit that runs is left alone; one that is stopping starts again
        after."""
        if self.state == "running":
            return
        if self.state == "stopping":
            self._start_again = True
            return
        self._history = RestartHistory(self._policy)
        self._start_main()

    def replace(self) -> None:
        """Starts the next process beside the one that runs; without one it is `start`."""
        if self.state != "running" or self._main is None:
            self.start()
            return
        if self._next is not None:
            self._kill(self._next)
        self._next = self._spawn({PREDECESSOR: str(ProcessId.of(self._main.pid))})

    def promote(self, pid: int) -> None:
        """The next process has announced that it serves."""
        if self._next is not None and self._next.pid == pid and self.state == "running":
            if self._main is not None:
                self._leaving.append(self._main)
            self._main, self._next = self._next, None
            self.release = self._main.release

    def stop(self) -> None:
        self._start_again = False
        children = self._children()
        if not children:
            self.state, self._deadline = "stopped", None
        elif self.state != "stopping":
            self.state = "stopping"
            self._deadline = time.monotonic() + self.spec.stop_s
            for child in children:
                child.process.send_signal(signal.SIGTERM)

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """SIGKILL to the unit and all that it started. Its session is its own, so nothing else can be hit."""
        for child in self._children():
            self._kill(child)

    def tick(self, now: float) -> None:
        if self._deadline is None or now < self._deadline:
            return
        self._deadline = None
        if self.state == "waiting":
            try:
                self._start_main()
            except UnitError as error:
                self.state = "failed"
                self.log.line(f"supervisor: {error}")
        elif self.state == "stopping":
            self.log.line(f"supervisor: no end within {self.spec.stop_s:g} s of SIGTERM; killed")
            self.kill()

    def reap(self, now: float) -> bool:
        """True when a process has ended since the last call."""
        ended = [child for child in self._children() if _has_exited(child.pid)]
        for child in ended:
            self._kill(child)  # what it left behind, while the zombie still holds the process group's id
            code = child.process.wait()
            self._read(child)
            self._close_output(child)
            self._forget(child, code, now)
        return bool(ended)

    def _children(self) -> list[Child]:
        return [child for child in (self._main, self._next, *self._leaving) if child is not None]

    def _forget(self, child: Child, code: int, now: float) -> None:
        if child in self._leaving:
            self._leaving.remove(child)
        elif child is self._next:
            self._next = None
            if self.state != "stopping":
                self._note_exit(code, f"exit {code} of the process that was to follow")
        elif self._next is not None and self.state != "stopping":
            self._main, self._next = self._next, None  # it listens already, or will soon
            self.release = self._main.release
        else:
            self._main = None
            if self.state != "stopping":
                self._after_exit(code, now, now - child.started_at)
        if self.state == "stopping" and not self.is_alive:
            self._after_stop()

    def _after_stop(self) -> None:
        self.state, self._deadline = "stopped", None
        if self._start_again:
            self._start_again = False
            self.start()

    def _after_exit(self, code: int, now: float, ran_s: float) -> None:
        delay = self._history.delay_after_exit(now, ran_s)
        if code == EXIT_CONFIG or delay is None:
            self.state, self._deadline = "failed", None
            why = "a restart cannot help" if code == EXIT_CONFIG else "crash loop, given up"
            verdict = f"exit {code}: {why}"
        else:
            self.state, self._deadline = "waiting", now + delay
            verdict = f"exit {code}, next start in {delay:g} s"
        self._note_exit(code, verdict)

    def _note_exit(self, code: int, verdict: str) -> None:
        self.exits += 1
        self.exit_code = code
        last = self.log.tail[-1] if self.log.tail else "no output"
        self.log.line(f"supervisor: {verdict}")
        self.log.tail.clear()
        self.log.tail.append(last)

    def _start_main(self) -> None:
        self.log.tail.clear()
        self._main = self._spawn({})
        self.release = self._main.release
        self.state, self._deadline = "running", None

    def _spawn(self, environment: dict[str, str]) -> Child:
        argv, release = self.spec.argv, None
        own = {"PYTHONUNBUFFERED": "1", **environment}
        if self.spec.needs_release:
            if not self._current.exists():
                raise UnitError(f"unit {self.spec.name} cannot start: there is no release yet")
            folder = self._current.resolve()
            release = folder.name
            argv = tuple(str(folder) if part == RELEASE_MARK else part for part in argv)
            own |= packages_before(folder)
        if self._notify_path is not None:
            # The run folder may be a link that keeps the path inside the 107 bytes of a socket address.
            own[NOTIFY_SOCKET] = str(self._notify_path.parent.resolve() / self._notify_path.name)
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        try:
            process = subprocess.Popen(
                bound_argv(argv, self._listen_fd),
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                pass_fds=() if self._listen_fd is None else (self._listen_fd,),
                env={**os.environ, **own},
                start_new_session=True,
            )
        except OSError as error:
            os.close(reader)
            raise UnitError(f"unit {self.spec.name} cannot start: {error}") from error
        finally:
            os.close(writer)
        return Child(process, reader, release)

    def _read(self, child: Child) -> None:
        """Takes what the pipe holds, in whole lines: two processes may write at once. At its end it is closed."""
        while child.output is not None:
            try:
                data = os.read(child.output, _READ)
            except BlockingIOError:
                return
            if not data:
                self._close_output(child)
                return
            lines, newline, child.partial = (child.partial + data).rpartition(b"\n")
            self.log.feed(lines + newline)
            if len(child.partial) >= _READ:
                self._flush(child)

    def _flush(self, child: Child) -> None:
        if child.partial:
            self.log.feed(child.partial + b"\n")
            child.partial = b""

    def _close_output(self, child: Child) -> None:
        if child.output is not None:
            self._before_close(child.output)  # whoever watches it: the next file or socket may get its number
            os.close(child.output)
            child.output = None
            self._flush(child)

    @staticmethod
    def _kill(child: Child) -> None:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def packages_before(folder: Path) -> dict[str, str]:
    """The environment in which a release that brought its own wheel finds it before the installed one."""
    own = folder / PACKAGES
    if not own.is_dir():
        return {}
    inherited = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(own.resolve()), *([inherited] if inherited else [])])}


def _has_exited(pid: int) -> bool:
    """Looks without reaping, so that the pid stays ours until its process group is dealt with."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
