"""Redeploys under load on this machine with the real demo model: nobody is refused, reset or told to come again.

The short form, which runs in `make test`, is part of test_local_journey.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from provision.wheel import build_from_checkout
from tests.e2e.journey import Home, demo_home, new_version
from tests.e2e.load import Load
from tests.lab.packages import ROOT, with_replaced

pytestmark = [pytest.mark.demo, pytest.mark.slow, pytest.mark.timeout(900)]
NAME = "steady"
CLIENTS = 8


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with demo_home(tmp_path_factory.mktemp("home"), NAME) as home:
        yield home


def load(home: Home) -> Load:
    access = home.json("endpoint", NAME)
    return Load(access["base_url"], access["api_key"], "demo", clients=CLIENTS)


def served_version(home: Home) -> str:
    access = home.json("endpoint", NAME)
    url = access["base_url"].removesuffix("/v1") + "/version"
    answer = httpx.get(url, headers={"Authorization": f"Bearer {access['api_key']}"}, trust_env=False, timeout=30)
    return str(answer.json()["version"])


def test_a_new_server_version_under_load_refuses_and_resets_nobody_and_rollback_brings_the_old_one_back(
    home: Home, tmp_path: Path
) -> None:
    before = served_version(home)
    wheel = new_version(tmp_path, "99.1")
    with load(home) as asked:
        done = home.run("redeploy", NAME, "--runtime-wheel", str(wheel), "--max-model-len", "512", "--yes")
        changed = served_version(home)
        home.run("rollback", "--name", NAME, "--yes")
        asked.go_on_until(time.monotonic() + 1.0)
    assert asked.outcomes.wrong == {}
    assert asked.outcomes.counts["fine"] > CLIENTS
    assert "max_model_len: (default) → 512" in done.stderr
    assert "new requests wait" in done.stderr
    assert "requests were held for " in done.stderr
    assert (changed, served_version(home)) == ("99.1", before)


def test_the_releases_say_which_one_serves(home: Home) -> None:
    found = home.json("releases", "list", NAME)
    serving = [entry["release"] for entry in found if entry["state"] == "serving"]
    assert serving == [home.json("status", NAME)["release"]]
    assert len(found) == 2


def test_a_version_that_cannot_be_imported_changes_nothing_and_says_why(home: Home, tmp_path: Path) -> None:
    broken = with_replaced(
        build_from_checkout(ROOT), {"runtime/server/app.py": b"import nothing_of_this_name"}, tmp_path
    )
    with load(home) as asked:
        error = home.json("redeploy", NAME, "--runtime-wheel", str(broken.path), "--yes", code=16)["error"]
    assert "nothing_of_this_name" in error["why"]
    assert asked.outcomes.wrong == {}
    assert home.json("status", NAME)["life"] == "ready"


def test_a_minute_of_redeploys_refuses_and_resets_nobody(home: Home, tmp_path: Path) -> None:
    began = time.monotonic()
    held = []
    with load(home) as asked:
        for number in range(20):
            wheel = new_version(tmp_path / str(number), f"99.{number}")
            words = ["--max-model-len", str(256 + number), "--runtime-wheel", str(wheel)]
            held.append(home.json("redeploy", NAME, *words[: 2 + 2 * (number % 2)], "--yes")["held_s"])
            if time.monotonic() > began + 60:
                break
        asked.go_on_until(began + 61)
    print(
        f"{len(held)} redeploys held {held} s; longest answer {asked.outcomes.waited_s:.1f} s; {asked.outcomes.counts}"
    )
    assert asked.outcomes.wrong == {}
    assert asked.outcomes.counts["fine"] > CLIENTS
