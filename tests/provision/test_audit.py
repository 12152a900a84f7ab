"""Who did what, and that nothing is destroyed that nobody has named."""

from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path

import pytest

from provision import audit
from provision.cli.ask import confirm_name
from provision.errors import DeclinedError, UsageError
from provision.state import LocalState, locked


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "deployctl"


def lines(root: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (root / ".audit.log").read_text().splitlines()]


def test_a_command_that_takes_the_lock_leaves_a_line_that_outlives_the_deployment(root: Path) -> None:
    state = LocalState("chat", root / "chat")
    with locked(state, "deployctl up chat --api-key …"):
        state.write_api_key("sk-of-this-test-0123456789")
    with locked(state, "deployctl down chat"):
        state.remove()
    first, second = lines(root)
    assert (first["command"], second["command"]) == ("deployctl up chat --api-key …", "deployctl down chat")
    assert (first["deployment"], first["pid"], first["by"]) == ("chat", os.getpid(), audit.who())
    assert stat.S_IMODE((root / ".audit.log").stat().st_mode) == 0o600
    assert not state.exists()


def test_the_log_keeps_the_newest_lines_within_its_size(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MOST_BYTES", 500)
    for number in range(20):
        audit.note("chat", f"deployctl up {number}")
    files = sorted(path.name for path in root.iterdir())
    assert files == [".audit.log", ".audit.log.1"]
    assert sum(path.stat().st_size for path in root.iterdir()) < 1500
    assert lines(root)[-1]["command"] == "deployctl up 19"


def test_a_log_that_cannot_be_written_keeps_nobody_from_going_on(root: Path) -> None:
    root.mkdir()
    (root / ".audit.log").mkdir()
    audit.note("chat", "deployctl down chat")
    assert (root / ".audit.log").is_dir()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def ask(monkeypatch: pytest.MonkeyPatch, answer: io.StringIO, *, yes: bool = False) -> None:
    monkeypatch.setattr("sys.stdin", answer)
    confirm_name("everything of chat is deleted", "chat", yes=yes, command="deployctl down chat")


@pytest.mark.parametrize("answer", ["", "y\n", "yes\n", "Chat\n"])
def test_what_cannot_be_taken_back_asks_for_the_name_itself(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    with pytest.raises(DeclinedError):
        ask(monkeypatch, Terminal(answer))
    ask(monkeypatch, Terminal("chat\n"))


def test_without_a_terminal_the_command_must_name_it_or_say_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError) as caught:
        ask(monkeypatch, io.StringIO("chat\n"))
    assert caught.value.next_command == "deployctl down chat"
    ask(monkeypatch, io.StringIO(), yes=True)
