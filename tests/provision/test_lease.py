"""Two operators at once: one works, the other is told who."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from provision import audit
from provision.errors import LockedError
from provision.lease import STALE_S, Holder, Lease, is_free, read_holder
from runtime.bucket import BucketError
from runtime.deployment import encode
from runtime.mailbox import ASKED, LOCK, FolderMailbox, Mailbox, decode_asked

COMMAND = "deployctl redeploy chat --model x"


@pytest.fixture
def mailbox(tmp_path: Path) -> FolderMailbox:
    return FolderMailbox(tmp_path)


def lease(mailbox: Mailbox | None, said: list[str] | None = None, command: str = COMMAND) -> Lease:
    return Lease("chat", command, lambda: mailbox, (said if said is not None else []).append, pause=lambda _: None)


def holder(**changes: object) -> Holder:
    """A command of another laptop that showed itself just now."""
    now = time.time()
    other = Holder(
        by="bob@babbage", host="babbage", pid=7, command="deployctl up", since=now - 40, renewed_at=now, token="b"
    )
    return msgspec.structs.replace(other, **changes)


def test_the_second_of_two_operators_is_told_who_works_since_when_and_on_what(mailbox: FolderMailbox) -> None:
    first, second = lease(mailbox), lease(mailbox)
    first.take()
    with pytest.raises(LockedError) as caught:
        second.take()
    assert f"`{COMMAND}` of {audit.who()}, pid {os.getpid()}" in (caught.value.why or "")
    first.take()  # it holds it already
    first.release()
    second.take()
    second.release()


def test_the_machine_is_told_who_gave_the_order(mailbox: FolderMailbox) -> None:
    mine = lease(mailbox)
    mine.take()
    mine.release()
    order = decode_asked(mailbox.get(ASKED) or b"")
    assert (order.by, order.command) == (audit.who(), COMMAND)


def test_before_there_is_a_mailbox_nothing_is_taken() -> None:
    mine = lease(None)
    mine.take()
    mine.release()


@pytest.mark.parametrize(
    ("changes", "free"),
    [
        ({}, False),
        ({"released": True}, True),
        ({"renewed_at": time.time() - STALE_S - 60}, True),
        ({"since": time.time() - 9000}, False),  # a long command that still shows itself
    ],
)
def test_a_command_elsewhere_holds_it_for_as_long_as_it_shows_itself(changes: dict[str, object], free: bool) -> None:
    assert is_free(holder(**changes), time.time()) is free


def test_a_command_that_died_on_this_machine_frees_it_at_once(mailbox: FolderMailbox) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mailbox.put(LOCK, encode(holder(host=socket.gethostname(), pid=dead.pid)))
    said: list[str] = []
    mine = lease(mailbox, said)
    mine.take()
    mine.release()
    assert said == ["`deployctl up` of bob@babbage has died, and frees chat"]


class Raced(FolderMailbox):
    """Another operator looks and writes in the same moment, and writes last."""

    def put(self, key: str, data: bytes) -> None:
        super().put(key, encode(holder()) if key == LOCK else data)


def test_of_two_who_write_at_once_one_gives_way(tmp_path: Path) -> None:
    with pytest.raises(LockedError) as caught:
        lease(Raced(tmp_path)).take()
    assert "bob@babbage" in (caught.value.why or "")


class Away(FolderMailbox):
    def get(self, key: str) -> bytes | None:
        raise BucketError("no connection", code="", transient=True)


def test_a_mailbox_that_cannot_be_reached_keeps_nobody_from_working(tmp_path: Path) -> None:
    said: list[str] = []
    lease(Away(tmp_path), said).take()
    assert "cannot be kept, only Pulumi's" in said[0]


def test_what_is_damaged_locks_nobody_out(mailbox: FolderMailbox) -> None:
    mailbox.put(LOCK, b"{")
    assert read_holder(mailbox) is None
