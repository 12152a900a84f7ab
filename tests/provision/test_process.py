"""provision.process: what /proc says about pids and ports."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision import process


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    code = "import time; print(flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code, "/a/folder/file"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_a_process_is_the_same_only_with_its_start_ticks(sleeper: subprocess.Popen[bytes]) -> None:
    ticks = process.start_ticks(sleeper.pid)
    assert ticks is not None
    assert process.is_same_process(sleeper.pid, ticks)
    assert not process.is_same_process(sleeper.pid, ticks - 1)


def test_a_zombie_counts_as_gone(sleeper: subprocess.Popen[bytes]) -> None:
    ticks = process.start_ticks(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # dead, not yet collected
    assert process.start_ticks(sleeper.pid) is None
    assert not process.is_same_process(sleeper.pid, ticks)


def test_children_are_found_through_every_generation() -> None:
    inner = "import time; print(flush=True); time.sleep(600)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    parent = subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    parent.stdout.readline()
    found = process.children(os.getpid())
    grandchild = process.children(parent.pid)
    assert len(grandchild) == 1
    assert {parent.pid, *grandchild} <= set(found)
    assert process.end_processes([parent.pid, *grandchild], grace_s=5.0) == [] or parent.wait() is not None
    parent.wait()
    parent.stdout.close()


def test_processes_are_found_by_the_folder_they_name(sleeper: subprocess.Popen[bytes]) -> None:
    assert process.processes_naming(Path("/a/folder")) == [sleeper.pid]
    assert process.processes_naming(Path("/a/fold")) == []


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert process.end_processes([child.pid], grace_s=0.2) == []
    assert child.wait() == -9
    child.stdout.close()


def test_the_owner_of_a_port_is_named_and_a_free_port_proposed() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not process.is_port_free("127.0.0.1", port)
        owner = process.port_owner(port)
        assert owner is not None
        assert owner.pid == os.getpid()
        assert process.free_port("127.0.0.1", port) > port
    assert process.is_port_free("127.0.0.1", port)
    assert process.port_owner(port) is None


def test_an_open_file_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w"):
        assert process.holds_open(os.getpid(), path)
    assert not process.holds_open(os.getpid(), path)
