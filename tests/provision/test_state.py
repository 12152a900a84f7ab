"""provision.state: folders, lock and names of local deployments."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from provision.errors import LockedError, NotFoundError, StateError, UsageError
from provision.state import (
    LocalState,
    choose_state,
    interrupt_holder,
    list_states,
    locked,
    make_api_key,
    open_state,
    state_root,
    without_secrets,
)

HOLDER = """
import sys
from provision.state import locked, open_state
with locked(open_state(sys.argv[1]), "deployctl up --name " + sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `chat`."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, "chat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "locked\n"
    yield child
    child.kill()
    child.communicate()


def deployed(name: str) -> LocalState:
    state = open_state(name)
    state.write_api_key("sk-x")
    return state


def test_the_state_is_private() -> None:
    state = deployed("chat")
    with locked(state, "deployctl up"):
        assert stat.S_IMODE(state.root.stat().st_mode) == 0o700
        assert stat.S_IMODE(state.key_file.stat().st_mode) == 0o600
        assert stat.S_IMODE(state.lock_file.stat().st_mode) == 0o600


def test_a_relative_xdg_path_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_root() == tmp_path / ".local/state/deployctl"


def test_keys_are_random_and_long() -> None:
    keys = {make_api_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("sk-") and len(key) >= 3 + 43 for key in keys)  # 43 = 256 bits in base64


def test_a_held_lock_names_its_holder(holder: subprocess.Popen[str]) -> None:
    with pytest.raises(LockedError) as caught, locked(open_state("chat"), "deployctl down chat"):
        pass
    assert f"pid {holder.pid}" in str(caught.value)
    assert "deployctl up --name chat" in str(caught.value)
    assert caught.value.next_command == "deployctl status chat"


def test_the_lock_of_a_killed_command_is_free(holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    with locked(open_state("chat"), "deployctl up"):
        assert b"deployctl up" in open_state("chat").lock_file.read_bytes()


def test_down_ends_the_command_that_holds_the_lock(holder: subprocess.Popen[str]) -> None:
    ended = interrupt_holder(open_state("chat"), timeout_s=10.0)
    assert ended is not None
    assert ended.pid == holder.pid
    with locked(open_state("chat"), "deployctl down"):
        pass


def test_a_stale_lock_file_does_not_get_an_innocent_process_killed() -> None:
    state = deployed("chat")
    record = {"pid": os.getppid(), "command": "deployctl up", "user": "x", "since": 0.0}
    state.lock_file.write_bytes(msgspec.json.encode(record))
    assert interrupt_holder(state, timeout_s=0.1) is None


def test_a_refused_command_leaves_no_folder_behind() -> None:
    state = open_state("chat")
    with locked(state, "deployctl up"):
        assert state.exists()
    assert not state.exists()


def test_the_only_deployment_needs_no_name() -> None:
    deployed("chat")
    assert choose_state(None).name == "chat"


def test_several_deployments_must_be_named() -> None:
    deployed("chat")
    deployed("code")
    with pytest.raises(NotFoundError, match="chat, code"):
        choose_state(None)
    assert [state.name for state in list_states()] == ["chat", "code"]


def test_an_unknown_name_says_which_there_are() -> None:
    deployed("chat")
    with pytest.raises(NotFoundError, match="there is: chat"):
        choose_state("code")


@pytest.mark.parametrize("name", ["", "a", "A1", "../x", "1a", "a" * 26, "a/b"])
def test_an_impossible_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        open_state(name)


def test_a_damaged_file_names_the_command_that_helps() -> None:
    state = deployed("chat")
    state.machine_dir.mkdir()
    (state.machine_dir / "supervisor.json").write_text("{half")
    with pytest.raises(StateError) as caught:
        state.supervisor()
    assert caught.value.next_command == "deployctl down chat"


def test_a_reused_pid_is_not_the_supervisor() -> None:
    state = deployed("chat")
    state.machine_dir.mkdir()
    record = {"pid": os.getpid(), "started_at": 1, "host": "127.0.0.1", "port": 8000}
    (state.machine_dir / "supervisor.json").write_bytes(msgspec.json.encode(record))
    assert state.supervisor() is not None
    assert state.running_supervisor() is None


def test_release_numbers_only_grow() -> None:
    state = open_state("chat")
    assert state.next_release() == "r1"
    for name in ("r1", "r9", "r10", "other"):
        state.mailbox.put(f"release/{name}/deployment.json", b"{}")
    assert state.next_release() == "r11"


def test_removing_takes_the_run_folder_elsewhere_along(tmp_path: Path) -> None:
    state = deployed("chat")
    elsewhere = tmp_path / "run-elsewhere"
    elsewhere.mkdir()
    state.machine_dir.mkdir()
    state.run_dir.symlink_to(elsewhere)
    state.remove()
    assert not state.exists()
    assert not elsewhere.exists()


def test_secrets_of_the_command_line_are_not_recorded() -> None:
    words = ["deployctl", "up", "--api-key", "sk-secret", "--hub-token=hf_secret", "--port", "8001"]
    assert without_secrets(words) == ["deployctl", "up", "--api-key", "…", "--hub-token=…", "--port", "8001"]
