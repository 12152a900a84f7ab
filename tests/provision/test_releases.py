"""Which release `rollback` means, and what is remembered of a cloud's releases."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from provision.errors import NotFoundError, StateError
from provision.history import fetch_wheel, forget, recall, remember
from provision.releases import choose_release, read_releases
from provision.spec import parse
from provision.state import LocalState
from runtime.deployment import encode
from runtime.mailbox import CURRENT, RELEASES, Current, FolderMailbox, ReleaseEntry, release_key, wheel_key

SHA256 = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"  # of b"foo"


def entry(release: str, state: str, ready_at: float | None = None, error: str | None = None) -> ReleaseEntry:
    raw = {"release": release, "state": state, "model": "demo", "max_model_len": 8, "dtype": "float32"}
    return msgspec.convert({**raw, "ready_at": ready_at, "error": error}, ReleaseEntry)


KEPT = [entry("r4", "serving", 4.0), entry("r3", "failed", None, "it did not load"), entry("r2", "ready", 2.0),
        entry("r1", "ready", 3.0)]  # fmt: skip


def test_without_a_name_it_is_the_release_that_served_last() -> None:
    assert choose_release(KEPT, None, "r4", "chat").release == "r1"


def test_a_release_can_be_named() -> None:
    assert choose_release(KEPT, "r2", "r4", "chat").release == "r2"


def test_a_release_that_failed_says_why_it_cannot_be_gone_back_to() -> None:
    with pytest.raises(NotFoundError, match="it did not load"):
        choose_release(KEPT, "r3", "r4", "chat")


def test_a_release_that_is_not_kept_names_those_that_are() -> None:
    with pytest.raises(NotFoundError, match="r4, r3, r2, r1"):
        choose_release(KEPT, "r9", "r4", "chat")


def test_the_first_release_has_none_before_it() -> None:
    with pytest.raises(NotFoundError, match="no release to go back to"):
        choose_release([entry("r1", "serving", 1.0)], None, "r1", "chat")


def test_a_machine_that_has_said_nothing_has_no_releases() -> None:
    assert read_releases(lambda _: None, "chat") == []


def test_a_list_that_cannot_be_read_is_a_state_error_with_its_key() -> None:
    with pytest.raises(StateError, match=RELEASES):
        read_releases(lambda _: b"{", "chat")


def test_what_a_release_was_asked_to_be_is_found_again_with_its_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    mailbox = FolderMailbox(tmp_path / "mailbox")
    key = wheel_key("r7", "deployctl-0.1.0-py3-none-any.whl")
    mailbox.put(key, b"foo")
    mailbox.put(CURRENT, encode(Current(release="r7", deployment="d", wheel=key, sha256=SHA256)))
    spec = parse({"name": "chat", "model": "demo", "max_model_len": 64})
    remember(mailbox, "r7", spec)
    remember(mailbox, "r7", spec)
    (mailbox.root / key).unlink()  # as Pulumi does when the next release comes
    past = recall(mailbox, "chat", "r7")
    assert past.spec == spec.public_values()
    assert fetch_wheel(mailbox, past, "chat").read_bytes() == b"foo"


def test_a_release_that_nobody_has_written_down_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="r1 of chat"):
        recall(FolderMailbox(tmp_path), "chat", "r1")


class Bucket(FolderMailbox):
    """A mailbox of which objects can be deleted."""

    def delete(self, keys: list[str]) -> None:
        for key in keys:
            (self.root / key).unlink()


def test_what_the_machine_has_dropped_is_deleted_with_its_wheel_but_never_the_current_release(tmp_path: Path) -> None:
    mailbox = Bucket(tmp_path)
    for number, digest in ((1, "one"), (2, "one"), (3, "two"), (4, "three")):
        release, wheel = f"r{number}", wheel_key(f"r{number}", "deployctl-0.1.0-py3-none-any.whl")
        mailbox.put(release_key(release), b"{}")
        mailbox.put(wheel, digest.encode())
        mailbox.put(CURRENT, encode(Current(release=release, deployment="d", wheel=wheel, sha256=digest)))
        remember(mailbox, release, parse({"name": "chat", "model": "demo"}))
    assert forget(mailbox, ["r2"]) == ["r1", "r3"]
    assert mailbox.keys("history/") == [
        "history/one/deployctl-0.1.0-py3-none-any.whl",
        "history/r2.json",
        "history/r4.json",
        "history/three/deployctl-0.1.0-py3-none-any.whl",
    ]
    assert {key.split("/")[1] for key in mailbox.keys("release/") if key.count("/") > 1} == {"r2", "r4"}
    assert forget(mailbox, ["r2"]) == []


def test_forgetting_keeps_the_current_release_and_the_highest_number(tmp_path: Path) -> None:
    state = LocalState("chat", tmp_path)
    for number in range(1, 6):
        state.mailbox.put(f"release/r{number}/deployment.json", b"{}")
    state.mailbox.put(CURRENT, encode(Current(release="r3", deployment="release/r3/deployment.json")))
    assert state.forget_releases(["r2"]) == ["r1", "r4"]
    assert state.next_release() == "r6"
