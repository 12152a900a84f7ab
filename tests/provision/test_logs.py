"""provision.logs: reading, filtering, merging and following the logs of units."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from provision.cli.logs import as_json_line, as_text, compiled
from provision.errors import UsageError
from provision.logs import Tail, last_lines, level_of, parse_age, parse_lines, read_logs
from provision.target import LogLine, LogQuery

ENGINE = "2026-07-01T12:00:00.500Z loaded\n2026-07-01T12:00:02.000Z ready\nno time\n"
SERVER = "2026-07-01T12:00:01.000Z open\n"
NOON = 1782907200.0  # 2026-07-01T12:00:00Z


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "engine.log").write_text(ENGINE)
    (tmp_path / "server.log").write_text(SERVER)
    return tmp_path


def texts(folder: Path, query: LogQuery) -> list[str]:
    return [f"{line.unit} {line.text}" for line in read_logs(folder, query, now=NOON + 3)]


def test_units_are_merged_by_time(folder: Path) -> None:
    assert texts(folder, LogQuery()) == ["engine loaded", "server open", "engine ready", "engine no time"]


def test_one_unit_can_be_asked_for(folder: Path) -> None:
    assert texts(folder, LogQuery(units=("server",))) == ["server open"]


def test_since_leaves_out_what_is_older(folder: Path) -> None:
    assert texts(folder, LogQuery(since_s=2.0)) == ["server open", "engine ready", "engine no time"]


def test_a_line_without_a_time_has_the_time_of_the_line_before() -> None:
    lines = list(parse_lines("engine", ENGINE.splitlines()))
    assert [line.at for line in lines] == [NOON + 0.5, NOON + 2.0, NOON + 2.0]


def test_following_shows_new_lines_and_survives_rotation(folder: Path) -> None:
    lines = read_logs(folder, LogQuery(units=("engine",), follow=True))
    assert [next(lines).text for _ in range(3)] == ["loaded", "ready", "no time"]
    log = folder / "engine.log"
    with log.open("a") as file:
        file.write("2026-07-01T12:00:04.000Z before rotation\n")
    log.rename(folder / "engine.log.1")
    log.write_text("2026-07-01T12:00:05.000Z after rotation\n")
    assert [next(lines).text for _ in range(2)] == ["before rotation", "after rotation"]


def test_a_half_written_line_waits_for_its_end(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("one\nhal")
    tail = Tail(log)
    assert tail.fresh() == ["one"]
    with log.open("a") as file:
        file.write("f\n")
    assert tail.fresh() == ["half"]


def test_the_rotated_file_comes_first(folder: Path) -> None:
    (folder / "server.log.1").write_text("2026-07-01T11:00:00.000Z older\n")
    assert last_lines(folder, "server", 2) == ["older", "open"]


def test_a_missing_log_is_empty(tmp_path: Path) -> None:
    assert last_lines(tmp_path, "engine", 5) == []


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("30s", 30), ("10m", 600), ("2h", 7200), ("1d", 86400)])
def test_ages_are_read(text: str, seconds: float) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "-5m", "5 weeks"])
def test_a_wrong_age_says_how_to_write_it(text: str) -> None:
    with pytest.raises(UsageError, match="10m"):
        parse_age(text)


@pytest.mark.parametrize(
    ("text", "priority", "level"),
    [
        ("ready", 6, "info"),
        ("ready", None, "info"),
        ("Traceback (most recent call last):", 6, "error"),
        ("ValueError: wrong", 6, "error"),
        ("error: no disk | hint: x", None, "error"),
        ("ERROR:    Exception in ASGI application", 6, "error"),
        ("[WARNING] slow", 6, "warning"),
        ("deployctl-engine.service: Failed with result 'exit-code'.", 4, "warning"),
        ("anything", 3, "error"),
        ("anything", 7, "debug"),
        ("0 errors so far", 6, "info"),
    ],
)
def test_a_level_is_the_journals_or_what_the_text_begins_with(text: str, priority: int | None, level: str) -> None:
    assert level_of(LogLine("engine", text, None, priority)) == level


def test_errors_are_coloured_on_a_terminal_only() -> None:
    line = LogLine("engine", "error: x", None)
    assert as_text(line) == "         engine     error: x"
    assert as_text(line, coloured=True) == "         \x1b[36mengine    \x1b[0m \x1b[31merror: x\x1b[0m"


def test_json_lines_name_unit_time_level_and_text() -> None:
    found = json.loads(as_json_line(LogLine("engine", "ready", 1.5)))
    assert found == {"unit": "engine", "at": 1.5, "level": "info", "text": "ready"}


def test_a_wrong_expression_is_refused_with_one_that_is_right() -> None:
    with pytest.raises(UsageError, match="not a regular expression") as error:
        compiled("(x")
    assert "--grep" in (error.value.next_command or "")
    assert compiled(None) is None
