"""Every day on one machine, in one go, with the real demo model: from `up` through change, failure and sleep to `down`.

Each step finds what the one before has left.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from provision.wheel import build_from_checkout
from tests.e2e.journey import Home, demo_home, new_version, wait_for
from tests.e2e.load import Load
from tests.lab.packages import ROOT, with_replaced

pytestmark = [pytest.mark.demo, pytest.mark.slow, pytest.mark.timeout(900)]
NAME = "daily"
KEPT: list[str] = []  # the key before it fell asleep
BACK = 16  # exit code of a redeploy that was taken back


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with demo_home(tmp_path_factory.mktemp("home"), NAME) as home:
        yield home


@pytest.fixture
def load(home: Home) -> Load:
    access = home.json("endpoint", NAME)
    return Load(access["base_url"], access["api_key"], "demo", clients=8)


def test_chat_answers_and_the_log_that_is_followed_shows_what_happens_next(home: Home) -> None:
    following = home.begin("logs", NAME, "-f", "--agent", "--since", "1s")
    said = following.stdout
    assert said is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda: [lines.append(line) for line in iter(said.readline, "")])
    reader.start()
    assert "Paris" in home.run("chat", "What is the capital of France?", "--name", NAME).stdout
    home.run("redeploy", NAME, "--max-model-len", "1024", "--yes")
    wait_for("the redeploy in the log", lambda: any("is ready" in line for line in lines) or None)
    following.send_signal(signal.SIGINT)
    following.wait(30)
    reader.join(30)


def test_a_changed_parameter_and_a_new_version_refuse_and_reset_none_of_8_clients(
    home: Home, load: Load, tmp_path: Path
) -> None:
    with load as asked:
        words = ("--max-model-len", "512", "--runtime-wheel", str(new_version(tmp_path, "99.1")))
        held_s = home.json("redeploy", NAME, *words, "--yes")["held_s"]
        asked.go_on_until(time.monotonic() + 1.0)
    assert asked.outcomes.wrong == {}
    assert asked.outcomes.counts["fine"] > 8
    assert held_s > 0


def test_a_redeploy_that_fails_puts_the_release_before_back(home: Home, load: Load, tmp_path: Path) -> None:
    before = home.json("status", NAME)["release"]
    bad = with_replaced(build_from_checkout(ROOT), {"runtime/server/app.py": b"import nothing_of_this_name"}, tmp_path)
    with load as asked:
        home.run("redeploy", NAME, "--runtime-wheel", str(bad.path), "--yes", code=BACK)
    assert asked.outcomes.wrong == {}
    assert home.json("status", NAME)["release"] == before


def test_a_rollback_brings_the_release_before_the_change_back(home: Home, load: Load) -> None:
    changed = home.json("status", NAME)["release"]
    with load as asked:
        home.run("rollback", "--name", NAME, "--yes")
    assert asked.outcomes.wrong == {}
    assert home.json("status", NAME)["release"] != changed


def test_a_key_is_rotated_with_a_grace_and_nobody_is_refused(home: Home, load: Load) -> None:
    with load as asked:
        home.run("keys", "rotate", "default", NAME, "--grace", "5m")
        asked.go_on_until(time.monotonic() + 2.0)
    assert asked.outcomes.wrong == {}
    access = home.json("endpoint", NAME)
    headers = {"Authorization": f"Bearer {access['api_key']}"}
    assert httpx.get(f"{access['base_url']}/models", headers=headers, trust_env=False).status_code == 200


def test_without_requests_it_stops_itself_and_says_why(home: Home) -> None:
    KEPT[:] = [home.json("endpoint", NAME)["api_key"]]
    home.run("redeploy", NAME, "--idle-stop", "10s", "--yes")
    seen = wait_for("it stops", lambda: found if (found := status(home))["life"] == "stopped" else None)
    assert seen["error"] == "no request for 10 s (idle_stop)"
    assert seen["hint"] == f"deployctl wake {NAME}"
    assert seen["processes"] == []


def test_wake_brings_it_back_with_the_same_key(home: Home) -> None:
    home.run("wake", NAME, "--yes")
    assert home.json("status", NAME)["life"] == "ready"
    assert home.json("endpoint", NAME)["api_key"] == KEPT[0]


def test_down_leaves_nothing(home: Home) -> None:
    assert "0 processes left" in home.run("down", NAME).stdout


def status(home: Home) -> dict[str, Any]:
    """Whatever its exit code says of the deployment's life."""
    said, _ = home.begin("status", NAME, "--json").communicate(timeout=60)
    found: dict[str, Any] = json.loads(said)
    return found
