"""Redeploys under load on this machine with the real demo model: nobody is refused, reset or told to come again."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.e2e.journey import Home, free_port
from tests.e2e.load import Load

pytestmark = [pytest.mark.demo, pytest.mark.timeout(900)]
NAME = "steady"
CLIENTS = 8


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home whose deployment is up."""
    home = Home(tmp_path_factory.mktemp("home"))
    home.run("up", NAME, "--model", "demo", "--port", str(free_port()), "--kv-cache-gib", "0.5", "--yes")
    yield home
    home.run("down", "--all")


def load(home: Home) -> Load:
    access = home.json("endpoint", NAME)
    return Load(access["base_url"], access["api_key"], "demo", clients=CLIENTS)


def test_a_redeploy_under_load_refuses_and_resets_nobody(home: Home) -> None:
    with load(home) as asked:
        before = home.json("status", NAME)["release"]
        seen = home.json("redeploy", NAME, "--max-model-len", "512", "--yes")
        asked.go_on_until(time.monotonic() + 1.0)
    assert seen["release"] != before
    assert asked.outcomes.wrong == {}
    assert asked.outcomes.counts["fine"] > CLIENTS
