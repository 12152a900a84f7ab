"""provision.mailbox_logs: what a machine has uploaded, followed without gaps that nobody tells, and without repeats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from provision.mailbox_logs import lines_after, log_unit, read_mailbox_logs
from provision.target import LogLine, LogQuery
from runtime.bucket import BucketError
from runtime.mailbox import LOGS, FolderMailbox

NOON = 1782907200.0  # 2026-07-01T12:00:00Z
LINES = [LogLine("engine", str(number), NOON + number) for number in range(6)]


def text(*seconds: int) -> bytes:
    return b"".join(b"2026-07-01T12:00:%02d.000Z line %d\n" % (second, second) for second in seconds)


@dataclass(slots=True)
class Machine:
    """A mailbox that is changed between two looks at it; a change may be that it is away."""

    mailbox: FolderMailbox
    changes: list[object]
    said: list[str] = field(default_factory=list)
    away: bool = False

    def get(self, key: str) -> bytes | None:
        return self.mailbox.get(key)

    def put(self, key: str, data: bytes) -> None:
        self.mailbox.put(key, data)

    def keys(self, prefix: str) -> list[str]:
        if self.away:
            raise BucketError("no connection", transient=True)
        return self.mailbox.keys(prefix)

    def pause(self, _: float) -> None:
        """The time between two looks: the next change happens. After the last one, the reader is interrupted."""
        if not self.changes:
            raise KeyboardInterrupt
        change = self.changes.pop(0)
        self.away = change == "away"
        if isinstance(change, bytes):
            self.put(f"{LOGS}engine.log", change)

    def follow(self) -> list[str]:
        return [line.text for line in until_interrupted(self.read())]

    def read(self) -> Iterator[LogLine]:
        query = LogQuery(follow=True)
        return read_mailbox_logs(self, query, poll_s=1.0, report=self.said.append, pause=self.pause)


def until_interrupted(lines: Iterator[LogLine]) -> Iterator[LogLine]:
    try:
        yield from lines
    except KeyboardInterrupt:
        return


def machine(tmp_path: Path, *changes: object) -> Machine:
    made = Machine(FolderMailbox(tmp_path), list(changes))
    made.put(f"{LOGS}engine.log", text(1, 2))
    return made


def test_new_lines_come_once_although_each_upload_holds_the_old_ones(tmp_path: Path) -> None:
    found = machine(tmp_path, text(1, 2, 3), text(1, 2, 3), text(2, 3, 4, 5))
    assert found.follow() == ["line 1", "line 2", "line 3", "line 4", "line 5"]
    assert found.said == []


def test_a_mailbox_that_is_away_for_a_while_costs_nothing(tmp_path: Path) -> None:
    found = machine(tmp_path, "away", "away", text(1, 2, 3))
    assert found.follow() == ["line 1", "line 2", "line 3"]
    assert len(found.said) == 2
    assert "no connection" in found.said[0]


def test_a_gap_is_told_and_nothing_is_shown_twice(tmp_path: Path) -> None:
    found = machine(tmp_path, text(7, 8))
    assert found.follow() == ["line 1", "line 2", "line 7", "line 8"]
    assert "lines are missing here" in found.said[0]


def test_a_mailbox_that_cannot_be_read_at_all_is_an_error(tmp_path: Path) -> None:
    found = machine(tmp_path)
    found.away = True
    with pytest.raises(BucketError):
        found.follow()


def test_only_the_wanted_units_and_no_older_lines_than_asked_for(tmp_path: Path) -> None:
    mailbox = FolderMailbox(tmp_path)
    mailbox.put(f"{LOGS}engine.log", text(1, 2))
    mailbox.put(f"{LOGS}agent.log", text(3))
    query = LogQuery(("engine",), since_s=8.5)
    assert [line.text for line in read_mailbox_logs(mailbox, query, poll_s=0, now=NOON + 10)] == ["line 2"]


def test_lines_join_on_to_the_last_one_that_was_seen() -> None:
    assert lines_after(LINES, None) == (LINES, True)
    assert lines_after(LINES[2:], LINES[3]) == (LINES[4:], True)
    assert lines_after(LINES[4:], LINES[1]) == (LINES[4:], False)
    assert lines_after(LINES, LINES[-1]) == ([], True)


def test_a_log_is_named_by_its_key() -> None:
    assert log_unit("status/logs/engine.log") == "engine"
