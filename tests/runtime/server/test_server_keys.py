"""Keys change while the server serves: `deployctl keys` writes the file, the server reads it by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from server_process import KEY, MODEL, Server, key_digest

from provision.key_stores import FolderKeys
from provision.keys import DEFAULT_KEY, add, revoke, rotate
from provision.state import LocalState
from provision.target import Access
from provision.usage import fetch_usage
from runtime.deployment import ApiKey, encode
from runtime.mailbox import KEYS
from runtime.server.auth import KeyRing

CLIENTS = 4
ROTATIONS = 12
GRACE_S = 600


@pytest.fixture
def store(server: Server, tmp_path: Path) -> Iterator[FolderKeys]:
    """A deployment whose keys the server reads."""
    state = LocalState("chat", tmp_path / "chat")
    state.write_api_key(KEY)
    state.mailbox.put(KEYS, encode([ApiKey(name=DEFAULT_KEY, sha256=key_digest(KEY))]))
    server.keys.unlink()
    server.keys.symlink_to(state.mailbox_dir / KEYS)
    yield FolderKeys(state)
    server.keys.unlink()
    server.write_keys(KEY)


class Clients:
    """Clients that ask without a pause, each with the newest key that it has been told of."""

    def __init__(self, server: Server, key: str) -> None:
        self.key = key
        self.answers: list[int] = []
        self._server = server
        self._over = threading.Event()
        self._failures: list[Exception] = []

    def ask(self) -> None:
        try:
            with self._server.http() as http:
                while not self._over.is_set():
                    key = self.key
                    answer = http.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
                    self.answers.append(answer.status_code)
        except httpx.HTTPError as error:
            self._failures.append(error)

    @contextmanager
    def asking(self) -> Iterator[None]:
        threads = [threading.Thread(target=self.ask) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
        assert not self._failures

    def wait_for(self, count: int) -> None:
        """Until `count` more requests were answered."""
        enough, deadline = len(self.answers) + count, time.monotonic() + 30
        while len(self.answers) < enough:
            assert not self._failures
            assert time.monotonic() < deadline
            time.sleep(0.001)


def test_under_load_no_request_with_a_valid_key_is_refused_while_it_is_rotated(
    server: Server, store: FolderKeys
) -> None:
    clients = Clients(server, KEY)
    with clients.asking():
        for _ in range(ROTATIONS):
            clients.wait_for(2 * CLIENTS)
            clients.key = store.renew_default(grace_s=GRACE_S)
        clients.wait_for(2 * CLIENTS)
    assert set(clients.answers) == {200}
    assert len(clients.answers) > ROTATIONS * CLIENTS


def status(server: Server, key: str) -> int:
    with server.http(key) as http:
        return http.get("/v1/models").status_code


def test_without_a_grace_the_new_key_counts_at_once_and_the_old_one_no_more(server: Server, store: FolderKeys) -> None:
    old = KEY
    for _ in range(3):
        new = store.renew_default(grace_s=0)
        assert (status(server, new), status(server, old)) == (200, 401)
        old = new


def test_a_named_key_comes_changes_and_goes_without_a_restart(server: Server, store: FolderKeys) -> None:
    store.write(add(store.read(), ApiKey(name="alice", sha256=key_digest("sk-a")), time.time()))
    assert status(server, "sk-a") == 200
    store.write(rotate(store.read(), "alice", key_digest("sk-b"), grace_s=GRACE_S, now=time.time()))
    assert (status(server, "sk-a"), status(server, "sk-b")) == (200, 200)
    store.write(revoke(store.read(), "alice", time.time()))
    assert (status(server, "sk-a"), status(server, "sk-b"), status(server, KEY)) == (401, 401, 200)


def test_the_use_of_each_key_is_read_from_the_servers_own_counters(server: Server, store: FolderKeys) -> None:
    store.write(add(store.read(), ApiKey(name="ann", sha256=key_digest("sk-ann"), rpm=1), time.time()))
    body = {"model": MODEL, "prompt": "the quick", "max_tokens": 3}
    with server.http("sk-ann") as http:
        assert [http.post("/v1/completions", json=body).status_code for _ in range(2)] == [200, 429]
    usage = fetch_usage(Access(f"{server.url}/v1", KEY, MODEL, 256))
    seen = usage.of("ann")
    assert (seen.requests, seen.refused) == (1, 1)
    assert 0 < seen.prompt_tokens <= usage.prompt_tokens
    assert 0 < (usage.seconds or 0) < 600
    assert usage.of("nobody").requests == 0


def test_the_end_of_a_rotated_key_needs_no_change_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(encode([ApiKey(name="a", sha256=key_digest("old"), expires_at=1000)]))
    now = [999.9]
    ring = KeyRing(path, lambda: now[0])
    assert ring.match("Bearer old") is not None
    now[0] = 1000.0
    assert ring.match("Bearer old") is None
