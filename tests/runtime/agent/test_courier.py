"""The agent's side of a mailbox that may be away: nothing is lost, nothing waits, nothing falls over."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from runtime.agent.courier import Courier
from runtime.agent.files import Access
from runtime.agent.rounds import Rounds
from runtime.bucket import BucketError
from runtime.mailbox import CURRENT, HUB_SECRET, KEYS, STATUS, FolderMailbox


class Store(FolderMailbox):
    """A mailbox folder that can be away."""

    away = False
    denies: frozenset[str] = frozenset()
    puts = 0

    def get(self, key: str) -> bytes | None:
        self._check()
        if key in self.denies:
            raise BucketError(f"{key}: access denied", code="AccessDenied")
        return super().get(key)

    def put(self, key: str, data: bytes) -> None:
        self._check()
        self.puts += 1
        super().put(key, data)

    def _check(self) -> None:
        if self.away:
            raise BucketError("no route to the store", transient=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def courier_of(store: Store, tmp_path: Path) -> Courier:
    mirrors = {KEYS: tmp_path / "run" / "keys.json", STATUS: tmp_path / "run" / "status.json"}
    return Courier(store, tmp_path / "cache", mirrors, Access(0o640, 0o750))


def test_a_watched_object_is_known_after_a_round_and_follows_its_changes(store: Store, tmp_path: Path) -> None:
    courier = courier_of(store, tmp_path)
    assert courier.get(CURRENT) is None
    for content in (b"one", b"two"):
        store.put(CURRENT, content)
        courier.sync()
        assert courier.get(CURRENT) == content


def test_what_was_put_while_the_store_is_away_is_sent_later_the_newest_only(store: Store, tmp_path: Path) -> None:
    courier = courier_of(store, tmp_path)
    store.away = True
    for content in (b"1", b"2", b"3"):
        courier.put(STATUS, content)
        courier.sync()
    store.away = False
    courier.sync()
    assert store.get(STATUS) == b"3"
    assert store.puts == 1


def test_an_outage_is_said_once_and_so_is_its_end(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    courier = courier_of(store, tmp_path)
    store.away = True
    for _ in range(3):
        courier.sync()
    store.away = False
    for _ in range(3):
        courier.sync()
    said = capsys.readouterr().err
    assert said.count("cannot be reached") == 1
    assert said.count("can be reached again") == 1


def test_after_a_restart_in_an_outage_the_release_is_still_known_and_secrets_are_not(
    store: Store, tmp_path: Path
) -> None:
    store.put(CURRENT, b"current")
    store.put("release/r1/deployment.json", b"deployment")
    store.put(HUB_SECRET, b"secret")
    courier = courier_of(store, tmp_path)
    courier.sync()
    assert courier.get("release/r1/deployment.json") == b"deployment"
    assert courier.get(HUB_SECRET) == b"secret"
    store.away = True
    again = courier_of(store, tmp_path)
    again.sync()
    assert again.get(CURRENT) == b"current"
    assert again.get("release/r1/deployment.json") == b"deployment"
    with pytest.raises(BucketError):
        again.get(HUB_SECRET)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and b"secret" in path.read_bytes()]


def test_keys_reach_the_server_readable_by_its_group_and_survive_an_object_that_is_away_for_a_moment(
    store: Store, tmp_path: Path
) -> None:
    store.put(KEYS, b"[1]")
    courier = courier_of(store, tmp_path)
    courier.sync()
    (store.root / KEYS).unlink()
    courier.sync()
    keys = tmp_path / "run" / "keys.json"
    assert keys.read_bytes() == b"[1]"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o640


def test_the_server_sees_a_status_at_once(store: Store, tmp_path: Path) -> None:
    store.away = True
    courier_of(store, tmp_path).put(STATUS, b"{}")
    assert (tmp_path / "run" / "status.json").read_bytes() == b"{}"


def test_a_store_that_denies_what_does_not_exist_is_read_as_nothing_there(store: Store, tmp_path: Path) -> None:
    """S3 tells a role that may not list 403 in place of 404."""
    store.put(KEYS, b"[1]")
    store.denies = frozenset({CURRENT, HUB_SECRET})
    courier = courier_of(store, tmp_path)
    courier.sync()
    assert courier.get(KEYS) == b"[1]"
    assert courier.get(HUB_SECRET) is None


def test_a_step_that_fails_is_said_once_and_stops_neither_the_others_nor_the_rounds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = []

    def fail() -> None:
        raise OSError("journal is broken")

    rounds = Rounds((fail, lambda: done.append(1)), 60.0)
    rounds.go_once()
    rounds.go_once()
    assert len(done) == 2
    assert capsys.readouterr().err.count("journal is broken") == 1


def test_a_round_begins_soon_after_it_is_asked_for() -> None:
    second = threading.Event()
    seen: list[int] = []

    def count() -> None:
        seen.append(1)
        if len(seen) == 2:
            second.set()

    rounds = Rounds((count,), 3600.0)
    rounds.start()
    rounds.wake()
    assert second.wait(10)
    rounds.end(10)
    assert not rounds.is_alive()
