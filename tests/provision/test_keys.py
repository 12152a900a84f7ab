"""provision.keys and its stores: what a key may be called, what a rotation leaves, where it is kept."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest

from provision.errors import NotFoundError, NotRunningError, UsageError
from provision.key_stores import FolderKeys
from provision.keys import DEFAULT_KEY, add, besides_default, digest, living, revoke, rotate
from provision.state import LocalState
from runtime.deployment import ApiKey, decode_keys, encode
from runtime.mailbox import KEYS

NOW = 1_800_000_000.0
OWN = ApiKey(name=DEFAULT_KEY, sha256=digest("sk-own"))
ALICE = ApiKey(name="alice", sha256=digest("sk-alice"), rpm=60, tpm=9000)


def test_a_name_is_taken_once() -> None:
    keys = add((OWN,), ALICE, NOW)
    assert keys == (OWN, ALICE)
    with pytest.raises(UsageError, match="there is a key called alice already"):
        add(keys, ALICE, NOW)


@pytest.mark.parametrize("name", ["", "Alice", "a b", "-a", "x" * 33, 'a"b', "a\nb"])
def test_a_name_that_would_not_do_in_logs_and_metrics_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is not a name of a key"):
        add((), ApiKey(name=name, sha256="0"), NOW)


def test_a_rotated_key_keeps_name_and_limits_and_the_old_one_its_grace() -> None:
    keys = rotate((OWN, ALICE), "alice", digest("sk-new"), grace_s=600, now=NOW)
    new, old = keys[1:]
    assert (new.name, new.rpm, new.tpm, new.sha256, new.expires_at) == ("alice", 60, 9000, digest("sk-new"), None)
    assert (old.name, old.sha256, old.expires_at) == ("alice", ALICE.sha256, int(NOW) + 600)
    assert living(keys, NOW + 599) == keys
    assert living(keys, NOW + 600) == (OWN, new)


def test_without_a_grace_the_old_key_is_gone() -> None:
    assert rotate((OWN,), DEFAULT_KEY, "new", grace_s=0, now=NOW) == (ApiKey(name=DEFAULT_KEY, sha256="new"),)


def test_a_second_rotation_within_the_grace_leaves_the_first_its_end() -> None:
    once = rotate((ALICE,), "alice", "b", grace_s=600, now=NOW)
    twice = rotate(once, "alice", "c", grace_s=60, now=NOW + 1)
    assert [(key.sha256, key.expires_at) for key in twice] == [
        ("c", None),
        ("b", int(NOW) + 61),
        (ALICE.sha256, int(NOW) + 600),
    ]


def test_revoke_takes_the_key_and_the_ones_before_it() -> None:
    keys = rotate((OWN, ALICE), "alice", "b", grace_s=600, now=NOW)
    assert revoke(keys, "alice", NOW) == (OWN,)


def test_what_is_not_there_cannot_be_revoked_or_rotated_and_deployctls_own_key_only_rotated() -> None:
    with pytest.raises(NotFoundError, match="there is: alice, default"):
        revoke((OWN, ALICE), "bob", NOW)
    with pytest.raises(NotFoundError):
        rotate((OWN,), "bob", "x", grace_s=0, now=NOW)
    with pytest.raises(UsageError, match="default cannot be revoked"):
        revoke((OWN, ALICE), DEFAULT_KEY, NOW)


def test_a_new_release_keeps_every_key_but_deployctls_current_one() -> None:
    old = ApiKey(name=DEFAULT_KEY, sha256="old", expires_at=int(NOW) + 9)
    assert besides_default((OWN, old, ALICE)) == (old, ALICE)


# ---- on this machine ----


@pytest.fixture
def state(tmp_path: Path) -> LocalState:
    state = LocalState("chat", tmp_path / "chat")
    state.write_api_key("sk-own")
    state.mailbox.put(KEYS, encode([OWN]))
    return state


def test_the_machine_is_given_digests_in_a_file_of_the_users_alone(state: LocalState) -> None:
    store = FolderKeys(state)
    store.write(add(store.read(), ALICE, NOW))
    secret = store.renew_default(grace_s=60)
    path = state.mailbox_dir / KEYS
    written = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert state.api_key() == secret
    assert all(word not in written for word in ("sk-own", "sk-alice", secret))
    assert [key.name for key in decode_keys(written.encode())] == ["default", "default", "alice"]


@pytest.mark.parametrize("written", [True, False])
def test_a_rotation_that_was_killed_leaves_a_key_that_is_let_in(state: LocalState, written: bool) -> None:
    """Between its two writes of keys.json, before or after the file with the secret."""
    new = ApiKey(name=DEFAULT_KEY, sha256=digest("sk-new"))
    state.mailbox.put(KEYS, encode([OWN, ALICE, new]))
    if written:
        state.write_api_key("sk-new")
    mine = digest(state.api_key() or "")
    store = FolderKeys(state)
    assert (store.read()[0].sha256, store.read()[1:]) == (mine, (ALICE,))
    store.write(store.read())
    assert decode_keys(state.mailbox.get(KEYS) or b"") == [ApiKey(name=DEFAULT_KEY, sha256=mine), ALICE]


def test_before_the_first_up_there_are_no_keys(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError):
        FolderKeys(LocalState("chat", tmp_path / "chat")).read()


def test_a_grace_counts_from_the_moment_of_the_rotation(state: LocalState) -> None:
    before = int(time.time())
    FolderKeys(state).renew_default(grace_s=600)
    (old,) = [key for key in state.api_keys() if key.expires_at is not None]
    assert before + 600 <= (old.expires_at or 0) <= time.time() + 600
