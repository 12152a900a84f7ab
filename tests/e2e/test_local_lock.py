"""deploy.lock on this machine, with the real demo model: written, held to, renewed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.e2e.journey import Home, free_port

pytestmark = [pytest.mark.demo, pytest.mark.slow, pytest.mark.timeout(900)]
NAME = "locked"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("home"))
    spec = f"name: {NAME}\nmodel: demo\nmax_model_len: 256\nport: {free_port()}\n"
    (home.folder / "deploy.yaml").write_text(spec)
    home.run("up", "--yes")
    yield home
    home.run("down", NAME)


def lock_of(home: Home) -> Path:
    return home.folder / "deploy.lock"


def test_up_with_a_deploy_yaml_writes_down_what_serves(home: Home) -> None:
    held = json.loads(lock_of(home).read_text())
    assert held["packages"]["torch"] == metadata.version("torch")
    assert held["model"]["source"] == "demo"
    assert held["model"]["commit"].startswith("demo-")


def test_a_second_up_changes_neither_the_deployment_nor_the_file(home: Home) -> None:
    before = lock_of(home).read_bytes()
    assert "is up already" in home.run("up", "--yes").stderr
    assert lock_of(home).read_bytes() == before


def test_what_is_otherwise_is_told_until_upgrade_renews_it(home: Home) -> None:
    right = lock_of(home).read_bytes()
    lock_of(home).write_bytes(right.replace(metadata.version("torch").encode(), b"2.11.0"))
    assert "not as deploy.lock says: packages.torch: 2.11.0 →" in home.run("up", "--yes").stderr
    assert "deploy.lock: packages.torch: 2.11.0 →" in home.run("up", "--upgrade", "--yes").stderr
    assert lock_of(home).read_bytes() == right
