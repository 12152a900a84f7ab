"""Running `deployctl` as a user would: own home and state folder, the real cache of converted models."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

DEPLOYCTL = (sys.executable, "-c", "from provision.cli import main; main()")
UP_TIMEOUT_S = 600.0  # the first `up` converts the demo model
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Home:
    """One user: everything that deployctl writes, but the cache, is under `folder`."""

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        changed = {
            "HOME": str(self.folder),
            "XDG_STATE_HOME": str(self.folder / "state"),
            "XDG_CACHE_HOME": cache,
            "XDG_RUNTIME_DIR": str(self.folder),
            "NO_COLOR": "1",
        }
        return {**os.environ, **changed}

    def state(self, name: str) -> Path:
        return self.folder / "state" / "deployctl" / name

    def run(
        self, *words: str, code: int = 0, stdin: str = "", timeout_s: float = UP_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """One command; fails when it does not end with `code`."""
        done = subprocess.run(
            [*DEPLOYCTL, *words],
            env=self.env,
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        said = f"deployctl {' '.join(words)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == code, said
        assert "Traceback" not in done.stderr, said
        return done

    def json(self, *words: str, code: int = 0) -> Any:
        """stdout of a command with --json; it holds nothing else."""
        return json.loads(self.run(*words, "--json", code=code).stdout)

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """A command that runs beside the test; Ctrl-C works as in a terminal, whatever the test was started by."""
        return subprocess.Popen(
            ["env", "--default-signal=INT", *DEPLOYCTL, *words],
            env=self.env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def pid(self, name: str, unit: str) -> int:
        """Pid of a running unit."""
        processes = self.json("status", name, code=self.status_code(name))["processes"]
        return int(next(process["pid"] for process in processes if process["unit"] == unit))

    def status_code(self, name: str) -> int:
        done = subprocess.run([*DEPLOYCTL, "status", name], env=self.env, capture_output=True, check=False)
        return done.returncode


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(what: str, look: Callable[[], T | None], timeout_s: float = 60.0) -> T:
    """Polls until `look` gives something that is not None."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout_s:.0f} s: {what}")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
