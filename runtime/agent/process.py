"""One unit's process under the supervisor: spawn, output, exit, back-off, stop.

             start            exit nobody asked for
    stopped ───────► running ─────────────────────► waiting ──back-off──► running
       ▲                │ stop                         │ crash loop, exit 78
       └── stopping ◄───┘                              └────────────────► failed

All methods belong to the supervisor's one thread: the kernel ties the parent-death signal to the thread that
spawned.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
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

_READ = 65536


class UnitProcess:
    """At most one live process per unit; `pid` is set exactly while it is not reaped."""

    def __init__(
        self,
        spec: UnitSpec,
        log: LogFile,
        *,
        current: Path,
        listen_fd: int | None,
        policy: RestartPolicy,
        before_close: Callable[[int], None] = lambda fd: None,
    ) -> None:
        self.spec = spec
        self.log = log
        self.state: State = "stopped"
        self.exits = 0
        self.exit_code: int | None = None
        self.release: str | None = None
        self.output: int | None = None  # read end of the process's stdout and stderr
        self._current = current
        self._listen_fd = listen_fd if spec.listens else None
        self._policy = policy
        self._before_close = before_close
        self._history = RestartHistory(policy)
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._deadline: float | None = None  # of the back-off while waiting, of SIGTERM while stopping
        self._start_again = False

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def deadline(self) -> float | None:
        """When `tick` has something to do, on time.monotonic's clock."""
        return self._deadline

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
        self._spawn()

    def stop(self) -> None:
        self._start_again = False
        if self._process is None:
            self.state, self._deadline = "stopped", None
        elif self.state == "running":
            self.state = "stopping"
            self._deadline = time.monotonic() + self.spec.stop_s
            self._process.send_signal(signal.SIGTERM)

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """SIGKILL to the unit and all that it started. Its session is its own, so nothing else can be hit."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                return

    def tick(self, now: float) -> None:
        if self._deadline is None or now < self._deadline:
            return
        self._deadline = None
        if self.state == "waiting":
            try:
                self._spawn()
            except UnitError as error:
                self.state = "failed"
                self.log.line(f"supervisor: {error}")
        elif self.state == "stopping":
            self.log.line(f"supervisor: no end within {self.spec.stop_s:g} s of SIGTERM; killed")
            self.kill()

    def read(self) -> None:
        """Takes what the pipe holds. At its end `output` becomes None."""
        while self.output is not None:
            try:
                data = os.read(self.output, _READ)
            except BlockingIOError:
                return
            if not data:
                self._close_output()
                return
            self.log.feed(data)

    def reap(self, now: float) -> bool:
        """True when the process has ended since the last call."""
        if self._process is None or not _has_exited(self._process.pid):
            return False
        self.kill()  # what it left behind, while the zombie still holds the process group's id
        code = self._process.wait()
        self._process = None
        self.read()
        self._close_output()
        if self.state == "stopping":
            self._after_stop()
        else:
            self._after_exit(code, now)
        return True

    def _after_stop(self) -> None:
        self.state, self._deadline = "stopped", None
        if self._start_again:
            self._start_again = False
            self.start()

    def _after_exit(self, code: int, now: float) -> None:
        self.exits += 1
        self.exit_code = code
        last = self.log.tail[-1] if self.log.tail else "no output"
        delay = self._history.delay_after_exit(now, now - self._started_at)
        if code == EXIT_CONFIG or delay is None:
            self.state, self._deadline = "failed", None
            why = "a restart cannot help" if code == EXIT_CONFIG else "crash loop, given up"
            verdict = f"supervisor: exit {code}: {why}"
        else:
            self.state, self._deadline = "waiting", now + delay
            verdict = f"supervisor: exit {code}, next start in {delay:g} s"
        self.log.line(verdict)
        self.log.tail.clear()
        self.log.tail.append(last)

    def _spawn(self) -> None:
        argv = self.spec.argv
        self.release = None
        if self.spec.needs_release:
            if not self._current.exists():
                raise UnitError(f"unit {self.spec.name} cannot start: there is no release yet")
            folder = self._current.resolve()
            self.release = folder.name
            argv = tuple(str(folder) if part == RELEASE_MARK else part for part in argv)
        self.log.tail.clear()
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        try:
            self._process = subprocess.Popen(
                bound_argv(argv, self._listen_fd),
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                pass_fds=() if self._listen_fd is None else (self._listen_fd,),
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        except OSError as error:
            os.close(reader)
            raise UnitError(f"unit {self.spec.name} cannot start: {error}") from error
        finally:
            os.close(writer)
        self.output = reader
        self.state, self._deadline = "running", None
        self._started_at = time.monotonic()

    def _close_output(self) -> None:
        if self.output is not None:
            self._before_close(self.output)  # whoever watches it: the next file or socket may get its number
            os.close(self.output)
            self.output = None
            self.log.end()


def _has_exited(pid: int) -> bool:
    """Looks without reaping, so that the pid stays ours until its process group is dealt with."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
