"""Long work in a process of its own: a download or a conversion that reports by JSON lines on stdout.

    {"percent": 41.5}   or   {"bytes": 1234, "total": 5678, "moved": 1300}        progress
    {"path": "/…/snapshots/abc", "revision": "abc"}                               result, last line
    {"error": "…", "hint": "…", "transient": true}                                failure, last line

A process can be given up when nothing moves any more (a thread cannot), and its libraries do not slow the
agent's start.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable

import msgspec

from runtime.agent.child import bound_argv
from runtime.agent.status import Pace, Progress, Report

TICK_S = 0.2
KILL_AFTER_S = 2.0


class WorkerLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a worker. Fields that this version does not know are ignored: converters may say more."""

    percent: float | None = None
    bytes: int | None = None
    total: int | None = None
    moved: int | None = None  # grows while anything happens; `bytes` if absent
    path: str | None = None
    revision: str | None = None
    error: str | None = None
    hint: str | None = None
    transient: bool = False


class WorkerError(Exception):
    """The worker failed or stalled. `transient`: running it again at once may help."""

    def __init__(self, error: str, hint: str | None = None, *, transient: bool = False) -> None:
        super().__init__(error)
        self.error = error
        self.hint = hint
        self.transient = transient


def emit(line: WorkerLine) -> None:
    """A worker says one line. One write, so that lines of two threads cannot mix."""
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


def run_worker(argv: tuple[str, ...], *, stdin: bytes = b"", report: Report, stall_s: float) -> WorkerLine:
    """Runs `argv` to its end and returns its last line. Call it from a thread that outlives the worker.

    `stall_s`: seconds without any movement after which it is killed. Raises WorkerError, and whatever
    `report` raises; the worker is gone in either case.
    """
    process = subprocess.Popen(
        bound_argv(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env={**os.environ, "TQDM_DISABLE": "1"},  # bars are for terminals
        start_new_session=True,
    )
    try:
        return _Run(process, report, stall_s).follow(stdin)
    finally:
        _end(process)


class _Run:
    """State of one run: what it said last and when something last moved."""

    def __init__(self, process: subprocess.Popen[bytes], report: Report, stall_s: float) -> None:
        self._process = process
        self._report = report
        self._stall_s = stall_s
        self._last = WorkerLine()
        self._moved_at = time.monotonic()
        self._pace = Pace()
        self._progress = Progress()
        self._stderr: deque[str] = deque(maxlen=8)

    def follow(self, stdin: bytes) -> WorkerLine:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            process.stdin.write(stdin)  # far below a pipe's size: cannot block
            process.stdin.close()
        except BrokenPipeError:
            pass  # it ended at once; its exit says why
        with selectors.DefaultSelector() as selector:
            for stream, on_line in ((process.stdout, self._said), (process.stderr, self._noted)):
                selector.register(stream, selectors.EVENT_READ, _Lines(stream.fileno(), on_line))
            while selector.get_map():
                for key, _ in selector.select(TICK_S):
                    if not key.data.read():
                        selector.unregister(key.fileobj)
                self._report(self._progress)
                if time.monotonic() - self._moved_at > self._stall_s:
                    raise WorkerError(f"no progress for {self._stall_s:g} s", transient=True)
        code = process.wait()
        if self._last.error is not None:
            raise WorkerError(self._last.error, self._last.hint, transient=self._last.transient)
        if code != 0:
            said = self._stderr[-1] if self._stderr else "it said nothing"
            raise WorkerError(f"exit code {code}: {said}", transient=code < 0)
        return self._last

    def _said(self, text: bytes) -> None:
        try:
            line = msgspec.json.decode(text, type=WorkerLine)
        except msgspec.DecodeError:
            self._noted(text)  # a library that prints to stdout is no failure
            return
        now = time.monotonic()
        if _amount(line) != _amount(self._last):
            self._moved_at = now
        self._last = line
        if line.total and line.bytes is not None:
            percent: float | None = min(100.0, 100 * line.bytes / line.total)
            self._progress = Progress(percent, line.bytes, self._pace.eta_s(now, line.bytes, line.total))
        elif line.percent is not None:
            self._progress = Progress(line.percent, None, self._pace.eta_s(now, line.percent, 100.0))

    def _noted(self, text: bytes) -> None:
        line = text.decode("utf-8", "replace").rstrip()
        if line:
            self._stderr.append(line)
            print(line, file=sys.stderr, flush=True)


class _Lines:
    """Cuts what a pipe gives into lines."""

    def __init__(self, fd: int, on_line: Callable[[bytes], None]) -> None:
        self._fd = fd
        self._on_line = on_line
        self._partial = b""

    def read(self) -> bool:
        """Takes what is there (call when readable). False at the end."""
        data = os.read(self._fd, 65536)
        *lines, self._partial = (self._partial + data).split(b"\n")
        if not data and self._partial:
            lines.append(self._partial)
        for line in lines:
            self._on_line(line)
        return bool(data)


def _amount(line: WorkerLine) -> tuple[int | None, float | None]:
    return line.bytes if line.moved is None else line.moved, line.percent


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM first, so that libraries can remove their partial files; then SIGKILL to the whole session."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
