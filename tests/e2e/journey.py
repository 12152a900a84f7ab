"""Running `deployctl` as a user would: own home and state folder, the real cache of converted models."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from provision.wheel import build_from_checkout
from tests.lab.packages import ROOT, with_replaced

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


@contextmanager
def demo_home(folder: Path, name: str) -> Iterator[Home]:
    """A home whose deployment `name` of the demo model is up; everything of it is down afterwards."""
    home = Home(folder)
    home.run("up", name, "--model", "demo", "--port", str(free_port()), "--kv-cache-gib", "0.5", "--yes")
    yield home
    home.run("down", "--all")


def new_version(folder: Path, version: str) -> Path:
    """This checkout's wheel, which says that it is another version."""
    built = build_from_checkout(ROOT)
    with zipfile.ZipFile(built.path) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines(keepends=True)
    said = [f"Version: {version}\n" if line.startswith("Version: ") else line for line in lines]
    made = with_replaced(built, {name: "".join(said).encode()}, folder).path
    return made.rename(folder / f"deployctl-{version}-py3-none-any.whl")


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
