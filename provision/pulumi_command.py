"""The pulumi command as a child process that Ctrl-C cannot tear away from its work.

It runs in a session of its own, so that the terminal's Ctrl-C reaches deployctl only, which passes it on: once, and
pulumi finishes what is in flight, saves its state and ends; twice, and it ends at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import IO, Any

from pulumi.automation import CommandResult, OnOutput, PulumiCommand
from pulumi.automation.errors import create_command_error

from provision.backend import own_copy
from provision.errors import MissingPartError

KILL_AFTER = 3  # interrupts
INSTALL_PAGE = "https://www.pulumi.com/docs/install/"


class Command(PulumiCommand):
    """`pulumi` for the Automation API. `on_interrupt` is called with the number of the Ctrl-C, from 1."""

    def __init__(self, path: Path, on_interrupt: Callable[[int], None]) -> None:
        super().__init__(root=str(path.parent.parent) if path.parent.name == "bin" else None)
        self._on_interrupt = on_interrupt

    def run(
        self,
        args: list[str],
        cwd: str,
        additional_env: Mapping[str, str],
        on_output: OnOutput | None = None,
        on_error: OnOutput | None = None,
    ) -> CommandResult:
        """Raises CommandError for a status other than 0, KeyboardInterrupt once pulumi has ended after a Ctrl-C."""
        return self.run_with_input(args, cwd, additional_env, "", on_output, on_error)

    def run_with_input(
        self,
        args: list[str],
        cwd: str,
        additional_env: Mapping[str, str],
        text: str,
        on_output: OnOutput | None = None,
        on_error: OnOutput | None = None,
    ) -> CommandResult:
        """Like `run`, with `text` on pulumi's standard input: the way for secrets."""
        with (
            self._interrupts() as interrupts,
            subprocess.Popen(
                [self.command, "--non-interactive", *args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=cwd,
                env={**os.environ, **self._path(), **additional_env, "PULUMI_AUTOMATION_API": "true"},
                encoding="utf-8",
                start_new_session=True,
            ) as child,
        ):
            interrupts.reach(child)
            readers = [_Reader(child.stdout, on_output), _Reader(child.stderr, on_error)]
            _feed(child, text)
            for reader in readers:
                reader.join()
            child.wait()
        result = CommandResult(stdout=readers[0].text(), stderr=readers[1].text(), code=child.returncode)
        if interrupts.count:
            raise KeyboardInterrupt
        if result.code != 0:
            raise create_command_error(result)
        return result

    def _path(self) -> dict[str, str]:
        """The language hosts that lie beside a pulumi of our own come first."""
        folder = os.path.dirname(self.command)
        return {"PATH": os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])} if folder else {}

    @contextlib.contextmanager
    def _interrupts(self) -> Iterator[_Interrupts]:
        """While it holds, Ctrl-C interrupts the child and not this program."""
        interrupts = _Interrupts(self._on_interrupt)
        if threading.current_thread() is not threading.main_thread():
            yield interrupts  # Python hands signals to the main thread only
            return
        before = signal.signal(signal.SIGINT, interrupts.pass_on)
        try:
            yield interrupts
        finally:
            signal.signal(signal.SIGINT, before)


class _Interrupts:
    """Counts Ctrl-C and passes each on to the child; the third one kills it with all that it has started."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.count = 0
        self._tell = tell
        self._child: subprocess.Popen[str] | None = None

    def reach(self, child: subprocess.Popen[str]) -> None:
        """The child is there; a Ctrl-C that came before it was is passed on now."""
        self._child = child
        if self.count:
            child.send_signal(signal.SIGINT)

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self._tell(self.count)
        if self._child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if self.count < KILL_AFTER:
                self._child.send_signal(signal.SIGINT)
            else:
                os.killpg(self._child.pid, signal.SIGKILL)


class _Reader(threading.Thread):
    """Collects one stream line by line."""

    def __init__(self, stream: IO[str] | None, callback: OnOutput | None) -> None:
        super().__init__(daemon=True)
        self._stream = stream
        self._callback = callback
        self._lines: list[str] = []
        self.start()

    def run(self) -> None:
        for line in self._stream or ():
            self._lines.append(line.rstrip())
            if self._callback:
                self._callback(line.rstrip())

    def text(self) -> str:
        return "\n".join(self._lines)


def _feed(child: subprocess.Popen[str], text: str) -> None:
    if child.stdin is not None and not child.stdin.closed:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(text)
            child.stdin.close()


def install_pulumi() -> Path:
    """Downloads the pulumi command into our cache. Raises MissingPartError when that fails."""
    try:
        PulumiCommand.install(root=str(own_copy()))
    except (OSError, subprocess.SubprocessError) as error:
        said: Any = error.stdout if isinstance(error, subprocess.CalledProcessError) else error
        raise MissingPartError(
            "the pulumi command could not be installed",
            why=said.decode(errors="replace").strip() if isinstance(said, bytes) else str(said),
            next_command=f"install it from {INSTALL_PAGE} and put it on PATH",
        ) from error
    return own_copy() / "bin" / "pulumi"
