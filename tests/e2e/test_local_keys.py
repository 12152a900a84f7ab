"""Keys change under load on this machine, with the real demo model: nobody with a valid key is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from tests.e2e.journey import Home, free_port

pytestmark = [pytest.mark.demo, pytest.mark.slow, pytest.mark.timeout(900)]
NAME = "chat"
CLIENTS = 8
ROTATIONS = 3


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("home"))
    home.run("up", NAME, "--model", "demo", "--port", str(free_port()), "--yes")
    yield home
    home.run("down", NAME)


class Load:
    """Clients that stream without a pause, each with the newest key that it was told."""

    def __init__(self, base_url: str, key: str) -> None:
        self.key = key
        self.answered = 0
        self._base_url = base_url
        self._over = threading.Event()

    def ask(self, number: int) -> int:
        """How many answers came; any refusal is raised."""
        count = 0
        while not self._over.is_set():
            client = openai.OpenAI(base_url=self._base_url, api_key=self.key, max_retries=0, timeout=120)
            prompt = f"Count to {number + 3}."
            with client.completions.create(model="demo", prompt=prompt, max_tokens=8, stream=True) as stream:
                assert list(stream)
            count += 1
            self.answered += 1
        return count

    def wait_for(self, more: int) -> None:
        enough, deadline = self.answered + more, time.monotonic() + 120
        while self.answered < enough:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def end(self) -> None:
        self._over.set()


def test_rotation_under_load_refuses_nobody_and_counts_for_every_name(home: Home) -> None:
    access = home.json("endpoint", NAME)
    alice = home.json("keys", "add", "alice", NAME)["secret"]
    load = Load(access["base_url"], alice)
    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(load.ask, number) for number in range(CLIENTS)]
        try:
            for _ in range(ROTATIONS):
                load.wait_for(CLIENTS)
                load.key = home.json("keys", "rotate", "alice", NAME, "--grace", "10m")["secret"]
            load.wait_for(CLIENTS)
        finally:
            load.end()
        counts = [task.result() for task in running]
    assert min(counts) > 0
    rows = {row["key"]: row for row in home.json("keys", "list", NAME) if row["expires_at"] is None}
    assert rows["alice"]["usage"]["requests"] == sum(counts)
    assert home.json("cost", NAME)["spent_usd"] == 0.0


def test_no_secret_of_a_key_is_in_any_file_or_log(home: Home) -> None:
    bob = home.json("keys", "add", "bob", NAME)["secret"]
    found = [path for path in Path(home.folder).rglob("*") if path.is_file() and bob.encode() in path.read_bytes()]
    assert found == []
    audit = (home.folder / "state" / "deployctl" / ".audit.log").read_text()
    assert '"command":"deployctl keys add bob chat --json"' in audit


def test_what_a_redeploy_brings_leaves_the_keys_as_they_are(home: Home) -> None:
    carol = home.json("keys", "add", "carol", NAME, "--rpm", "100")["secret"]
    home.run("redeploy", NAME, "--max-num-seqs", "4", "--yes")
    base_url = home.json("endpoint", NAME)["base_url"]
    assert openai.OpenAI(base_url=base_url, api_key=carol, max_retries=0).models.list().data[0].id == "demo"
    assert home.run("keys", "revoke", "carol", NAME, "--yes").returncode == 0
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=base_url, api_key=carol, max_retries=0).models.list()
