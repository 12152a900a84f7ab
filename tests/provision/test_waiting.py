"""provision.waiting: a deployment by its mailbox alone, here a folder."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from provision import waiting
from provision.errors import FailedError
from provision.progress import LineDisplay
from provision.target import Observation
from provision.waiting import Found, Mailed, Wanted, wait_for_release, with_status
from runtime.bucket import BucketError
from runtime.mailbox import IDENTITY, STATUS, FolderMailbox, Identity, Status, encode_status

WANTED = Wanted("chat", "aws", "eu-west-1", "box", "https://192.0.2.1:8000/v1", "r1")


class Scripted(FolderMailbox):
    """A mailbox whose status changes with every look at it."""

    def __init__(self, root: Path, *statuses: Status) -> None:
        super().__init__(root)
        self._statuses = list(statuses)

    def get(self, key: str) -> bytes | None:
        if key == STATUS and self._statuses:
            self.put(STATUS, encode_status(self._statuses.pop(0)))
        return super().get(key)


class Forbidden(FolderMailbox):
    def get(self, key: str) -> bytes | None:
        raise BucketError("public endpoint is forbidden", code="PublicEndpointForbidden")


def status(phase: Any, **changes: Any) -> Status:
    values = {"instance_id": "i-1", "release": "r1", "updated_at": time.time(), "phase": phase}
    return Status(**{**values, **changes})


def wait(mailbox: FolderMailbox, wanted: Wanted = WANTED) -> tuple[Found, str]:
    said = io.StringIO()
    return wait_for_release(wanted, mailbox=mailbox, display=LineDisplay(said), poll_s=0.001), said.getvalue()


def test_it_waits_through_the_phases_and_brings_the_certificate(tmp_path: Path) -> None:
    box = Scripted(tmp_path, status("python"), status("weights", percent=40.0), status("ready"))
    box.put(IDENTITY, msgspec.json.encode(Identity(instance_id="i-1", certificate="PEM")))
    found, said = wait(box)
    assert found == Found("ready", "r1", "PEM")
    assert [line.strip() for line in said.splitlines()][:2] == ["python", "weights 40 %"]


def test_a_failed_phase_ends_it_with_error_and_hint(tmp_path: Path) -> None:
    with pytest.raises(FailedError, match="driver") as caught:
        wait(Scripted(tmp_path, status("driver", error="no GPU", hint="choose a GPU type")))
    assert "choose a GPU type" in (caught.value.why or "")


def test_the_report_of_another_release_or_machine_is_old_news(tmp_path: Path) -> None:
    wanted = dataclasses.replace(WANTED, instance_id="i-2")
    box = Scripted(
        tmp_path, status("ready", release="r0", instance_id="i-2"), status("ready"), status("ready", instance_id="i-2")
    )
    box.put(IDENTITY, msgspec.json.encode(Identity(instance_id="i-1", certificate="OLD")))
    found, _ = wait(box, wanted)
    assert found == Found("ready", "r1", None)


def test_a_release_that_was_taken_back_is_a_failure(tmp_path: Path) -> None:
    back = status("ready", release="r0", error="release r1 failed: it does not fit")
    with pytest.raises(FailedError, match="it does not fit"):
        wait(Scripted(tmp_path, status("load", error=None), back))


def test_a_mailbox_that_is_forbidden_from_here_is_unknown_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "UNREADABLE_LIMIT_S", 0.0)
    assert wait(Forbidden(tmp_path))[0] == Found("unknown", "r1")


def test_a_short_outage_of_the_store_is_waited_through(tmp_path: Path) -> None:
    target = Mailed(WANTED, Forbidden(tmp_path))
    assert target.observe().life == "unknown"


def test_a_status_that_cannot_be_read_is_no_status(tmp_path: Path) -> None:
    box = FolderMailbox(tmp_path)
    box.put(STATUS, b'{"phase": "dancing"}')
    assert Mailed(WANTED, box).observe().life == "starting"


@pytest.mark.parametrize(
    ("report", "life", "phase"),
    [
        (None, "starting", None),
        (status("weights"), "starting", "weights"),
        (status("weights", release="r0"), "starting", None),
        (status("ready"), "ready", "ready"),
        (status("load", error="no memory"), "failed", "load"),
    ],
)
def test_an_observation_says_what_the_report_says_about_the_wanted_release(
    report: Status | None, life: str, phase: str | None
) -> None:
    seen = with_status(Observation("chat", "aws", "starting", wanted_release="r1"), report)
    assert (seen.life, seen.phase) == (life, phase)


def test_progress_counts_on_any_change_and_silence_ends_it(tmp_path: Path) -> None:
    clock: Callable[[], float] = iter(range(0, 10_000, 10)).__next__
    box = Scripted(tmp_path, *(status("weights", percent=float(number)) for number in range(5)))
    target = Mailed(WANTED, box)
    with pytest.raises(FailedError, match="no progress for 50 s"):
        waiting.wait_until_settled(
            target, "r1", LineDisplay(io.StringIO()), silence_limit_s=50, poll_s=0.0, clock=clock
        )
    assert target.observe().percent == 4.0
