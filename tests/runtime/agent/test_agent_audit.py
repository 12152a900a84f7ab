"""The machine writes down what it was told, and by whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.agent import audit
from runtime.agent.audit import Audit
from runtime.deployment import ApiKey, encode
from runtime.mailbox import ASKED, CURRENT, KEYS, LIFE, Asked, Current, FolderMailbox, Life, release_key

NOW = 1_782_907_200.0  # 2026-07-01T12:00:00Z
SECRET_DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


@pytest.fixture
def mailbox(tmp_path: Path) -> FolderMailbox:
    mailbox = FolderMailbox(tmp_path / "mailbox")
    mailbox.put(CURRENT, encode(Current(release="r1", deployment=release_key("r1"))))
    mailbox.put(KEYS, encode([ApiKey(name="default", sha256=SECRET_DIGEST)]))
    mailbox.put(ASKED, encode(Asked(by="ada@lovelace", command="deployctl up chat", at=NOW - 40)))
    return mailbox


def test_every_change_is_one_line_with_who_asked_and_no_digest(mailbox: FolderMailbox, tmp_path: Path) -> None:
    watch = Audit(mailbox, tmp_path, clock=lambda: NOW)
    watch.check()
    keys = [ApiKey(name="default", sha256="0"), ApiKey(name="default", sha256=SECRET_DIGEST, expires_at=1)]
    mailbox.put(KEYS, encode(keys))
    mailbox.put(ASKED, encode(Asked(by="bob@babbage", command="deployctl keys rotate", at=NOW)))
    watch.check()
    watch.check()
    mailbox.put(LIFE, encode(Life(expires_at=int(NOW) + 60, idle_stop_s=600)))
    watch.check()
    written = (tmp_path / "audit.log").read_text()
    assert written.splitlines() == [
        "2026-07-01T12:00:00.000Z release: r1; asked by ada@lovelace: deployctl up chat",
        "2026-07-01T12:00:00.000Z keys: default; asked by ada@lovelace: deployctl up chat",
        "2026-07-01T12:00:00.000Z keys: default, default (old); asked by bob@babbage: deployctl keys rotate",
        "2026-07-01T12:00:00.000Z life: ends at 2026-07-01T12:01:00.000Z, stops after 600 s without a request; "
        "asked by bob@babbage: deployctl keys rotate",
    ]
    assert SECRET_DIGEST not in written


def test_a_restart_tells_nothing_twice(mailbox: FolderMailbox, tmp_path: Path) -> None:
    Audit(mailbox, tmp_path).check()
    before = (tmp_path / "audit.log").read_text()
    Audit(mailbox, tmp_path).check()
    assert (tmp_path / "audit.log").read_text() == before


def test_an_old_order_is_not_taken_for_the_one_that_arrived(mailbox: FolderMailbox, tmp_path: Path) -> None:
    """A plain `pulumi up` leaves no order."""
    Audit(mailbox, tmp_path, clock=lambda: NOW + 7200).check()
    assert "asked by somebody without deployctl" in (tmp_path / "audit.log").read_text()


def test_what_cannot_be_read_is_written_down_too(mailbox: FolderMailbox, tmp_path: Path) -> None:
    mailbox.put(KEYS, b"[{")
    mailbox.put(ASKED, b"?")
    Audit(mailbox, tmp_path, clock=lambda: NOW).check()
    assert "keys: cannot be read" in (tmp_path / "audit.log").read_text()


def test_the_log_stays_small(mailbox: FolderMailbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MOST_BYTES", 300)
    watch = Audit(mailbox, tmp_path, clock=lambda: NOW)
    for number in range(12):
        mailbox.put(CURRENT, encode(Current(release=f"r{number}", deployment=release_key("r"))))
        watch.check()
    assert (tmp_path / "audit.log").stat().st_size < 500
    assert "release: r11" in (tmp_path / "audit.log").read_text()
    assert (tmp_path / "audit.log.1").exists()
