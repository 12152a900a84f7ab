"""Logs in the mailbox, from the journal's own format."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runtime.agent.uploads import EVERY_S, WANTED, Log, Uploads, journal_argv
from runtime.mailbox import FolderMailbox
from runtime.vm import LOG_UNITS


def entry(number: int, message: object) -> dict[str, object]:
    return {
        "__CURSOR": f"s=1;i={number}",
        "__REALTIME_TIMESTAMP": str(1_782_907_200_000_000 + number),
        "MESSAGE": message,
    }


def lines(*entries: dict[str, object]) -> bytes:
    return b"".join(json.dumps(found).encode() + b"\n" for found in entries)


@dataclass
class Journal:
    """What journalctl would answer next, by the first unit that it is asked for."""

    answers: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, ...]] = field(default_factory=list)
    now: float = 1000.0

    def run(self, argv: tuple[str, ...]) -> bytes:
        self.asked.append(argv)
        first = next(word for word in argv if word.startswith(("--unit=", "--dmesg")))
        return self.answers.pop(first.removeprefix("--unit="), b"")


@pytest.fixture
def mailbox(tmp_path: Path) -> FolderMailbox:
    return FolderMailbox(tmp_path)


def test_the_first_question_is_for_the_newest_lines_and_the_next_for_what_came_since() -> None:
    common = ("journalctl", "--output=json", "--output-fields=MESSAGE", "--no-pager", "--quiet")
    assert journal_argv(("--unit=a.service", "--unit=b.service"), None) == (
        *common,
        "--lines=3000",
        "--unit=a.service",
        "--unit=b.service",
    )
    assert journal_argv(("--unit=a.service",), "s=1;i=2") == (*common, "--after-cursor=s=1;i=2", "--unit=a.service")


def test_a_log_has_one_line_per_line_with_its_time_as_on_local(mailbox: FolderMailbox) -> None:
    journal = Journal({"deployctl-engine.service": lines(entry(0, "first"), entry(1500, "two\nlines"))})
    Uploads(mailbox, journal.run, lambda: journal.now).upload()
    assert (mailbox.get("status/logs/engine.log") or b"").decode().splitlines() == [
        "2026-07-01T12:00:00.000Z first",
        "2026-07-01T12:00:00.001Z two",
        "2026-07-01T12:00:00.001Z lines",
    ]


def test_the_kernels_warnings_are_a_log_of_their_own(mailbox: FolderMailbox) -> None:
    """The doctor reads Xid events there where no SSH leads to the machine."""
    fell = "NVRM: Xid (PCI:0000:00:1e): 79, GPU has fallen off the bus."
    journal = Journal({"--dmesg": lines(entry(0, fell))})
    Uploads(mailbox, journal.run, lambda: journal.now).upload()
    assert (mailbox.get("status/logs/kernel.log") or b"").decode() == f"2026-07-01T12:00:00.000Z {fell}\n"
    (asked,) = [argv for argv in journal.asked if "--dmesg" in argv]
    assert "--priority=warning" in asked


def test_messages_that_are_no_text_are_kept_as_far_as_they_can_be_read() -> None:
    log = Log()
    log.feed(lines(entry(0, [104, 105, 255]), entry(1, None)))
    assert log.content().decode() == "2026-07-01T12:00:00.000Z hi�\n"


def test_a_log_keeps_the_newest_lines_within_its_size() -> None:
    log = Log(most_bytes=100)
    log.feed(lines(*(entry(number, f"line {number}") for number in range(50))))
    assert len(log.content()) <= 100
    assert log.content().endswith(b"line 49\n")
    assert log.content().startswith(b"2026-")


def test_boot_holds_cloud_init_and_stage_0() -> None:
    assert {"cloud-final.service", "deployctl-stage0.service"} <= set(LOG_UNITS["boot"])


def test_a_log_that_has_not_grown_is_not_sent_again(mailbox: FolderMailbox) -> None:
    journal = Journal({"deployctl-agent.service": lines(entry(0, "once"))})
    uploads = Uploads(mailbox, journal.run, lambda: journal.now)
    uploads.upload()
    (mailbox.root / "status/logs/agent.log").unlink()
    journal.now += EVERY_S
    uploads.upload()
    assert mailbox.get("status/logs/agent.log") is None
    assert "--after-cursor=s=1;i=0" in journal.asked[-len(WANTED)]


def test_the_journal_is_read_every_half_minute_and_at_once_after_a_failure(mailbox: FolderMailbox) -> None:
    journal = Journal()
    uploads = Uploads(mailbox, journal.run, lambda: journal.now)
    uploads.upload()
    journal.now += EVERY_S - 1
    uploads.upload()
    assert len(journal.asked) == len(WANTED)
    uploads.hurry()
    uploads.upload()
    assert len(journal.asked) == 2 * len(WANTED)
