"""provision.journal: what is asked of journald, what its entries say, and connections that break meanwhile."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from provision import journal
from provision.errors import ConnectionFailedError, RemoteError
from provision.journal import journal_argv, parse_entry, read_journal
from provision.remote import Remote, connect
from provision.target import LogLine, LogQuery
from tests.lab.sshd import Sshd, serve_ssh

ASKED = ["journalctl", "--output=json", "--output-fields=MESSAGE,PRIORITY,UNIT,_SYSTEMD_UNIT", "--no-pager", "--quiet"]
ENGINE = "--unit=deployctl-engine.service"
# journalctl of a machine: a log of numbers; each call ends, or breaks, after a few of them.
JOURNALCTL = """#!{python}
import json, os, sys
after = [int(word.partition("=")[2]) for word in sys.argv if word.startswith("--after-cursor=")]
start = after[0] + 1 if after else 1
for number in range(start, 21):
    entry = {{"__CURSOR": str(number), "__REALTIME_TIMESTAMP": str(number * 1000000), "MESSAGE": f"line {{number}}",
             "_SYSTEMD_UNIT": "deployctl-engine.service", "PRIORITY": "6"}}
    print(json.dumps(entry), flush=True)
    if number % 7 == 0:
        {end}
"""


def test_the_newest_lines_of_the_wanted_units() -> None:
    assert journal_argv(LogQuery(("engine",)), None) == [*ASKED, "--lines=3000", ENGINE]


def test_an_age_and_new_lines() -> None:
    query = LogQuery(("engine",), since_s=600.0, follow=True)
    assert journal_argv(query, None) == [*ASKED, "--since=-600s", "--no-tail", "--follow", ENGINE]


def test_after_a_break_it_goes_on_behind_the_last_line() -> None:
    query = LogQuery(("engine",), since_s=600.0, follow=True)
    assert journal_argv(query, "s=1;i=2") == [*ASKED, "--after-cursor=s=1;i=2", "--no-tail", "--follow", ENGINE]


def test_boot_is_cloud_init_and_stage_0() -> None:
    argv = journal_argv(LogQuery(("boot",)), None)
    assert "--unit=cloud-final.service" in argv
    assert "--unit=deployctl-stage0.service" in argv
    assert ENGINE not in argv


def entry(**values: object) -> bytes:
    found = {"__CURSOR": "c", "__REALTIME_TIMESTAMP": "1500000", "_SYSTEMD_UNIT": "deployctl-server.service"}
    return json.dumps(found | values).encode()


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        (entry(MESSAGE="ready", PRIORITY="6"), [LogLine("server", "ready", 1.5, 6)]),
        (entry(MESSAGE="one\ntwo", PRIORITY="3"), [LogLine("server", "one", 1.5, 3), LogLine("server", "two", 1.5, 3)]),
        (entry(MESSAGE=[226, 130, 172, 255]), [LogLine("server", "€\ufffd", 1.5)]),
        (entry(MESSAGE=None), []),
        (entry(MESSAGE="Started.", _SYSTEMD_UNIT="init.scope", UNIT="deployctl-engine.service"),
         [LogLine("engine", "Started.", 1.5)]),
        (entry(MESSAGE="x", _SYSTEMD_UNIT="cloud-init.service"), [LogLine("boot", "x", 1.5)]),
    ],
)  # fmt: skip
def test_an_entry_says_unit_time_and_text(line: bytes, lines: list[LogLine]) -> None:
    assert parse_entry(line) == ("c", lines)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with serve_ssh(tmp_path / "sshd", f"SetEnv PATH={tmp_path}:/usr/bin:/bin") as running:
        yield running


def install(folder: Path, end: str) -> None:
    path = folder / "journalctl"
    path.write_text(JOURNALCTL.format(python=sys.executable, end=end))
    path.chmod(0o755)
    (folder / "sudo").write_text('#!/bin/sh\nshift; exec "$@"\n')
    (folder / "sudo").chmod(0o755)


def numbers(open_remote: Callable[[], Remote], said: list[str], count: int) -> list[str]:
    lines = read_journal(open_remote, LogQuery(("engine",), follow=True), said.append)
    return [next(lines).text for _ in range(count)]


def test_lines_come_once_and_without_a_gap_over_connections_that_break(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection's own process is killed in the middle of the journal."""
    install(tmp_path, "import time; time.sleep(0.2); os.kill(os.getppid(), 9); time.sleep(60)")
    monkeypatch.setattr(journal, "PAUSES_S", (0.01,))
    said: list[str] = []
    found = numbers(lambda: connect(server.login()), said, 20)
    assert found == [f"line {number}" for number in range(1, 21)]
    assert len(said) >= 2
    assert "again in" in said[0]


@pytest.mark.slow
def test_a_journal_that_ends_while_it_is_followed_is_opened_again(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "sys.exit(1)")
    monkeypatch.setattr(journal, "PAUSES_S", (0.01,))
    assert numbers(lambda: connect(server.login()), [], 20)[-1] == "line 20"


def test_a_machine_that_cannot_be_reached_at_first_is_an_error(server: Sshd) -> None:
    def fail() -> Remote:
        return connect(replace(server.login(), port=1))

    with pytest.raises(ConnectionFailedError):
        next(read_journal(fail, LogQuery(follow=True), print))


def test_a_user_who_may_not_read_the_journal_is_told_so(server: Sshd, tmp_path: Path) -> None:
    (tmp_path / "journalctl").write_text("#!/bin/sh\necho 'No journal files were opened' >&2; exit 1\n")
    (tmp_path / "journalctl").chmod(0o755)
    (tmp_path / "sudo").write_text('#!/bin/sh\nshift; exec "$@"\n')
    (tmp_path / "sudo").chmod(0o755)
    with pytest.raises(RemoteError, match="No journal files"):
        list(read_journal(lambda: connect(server.login()), LogQuery(), print))
