"""deploy.lock on AWS: the real program and Automation API, AWS in moto, and a machine that is played by the test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from provision.errors import UsageError
from runtime.mailbox import Built
from tests.lab.laptop import MODEL, AwsLaptop, aws_laptop
from tests.lab.scripted_machine import ScriptedMachine, free_port, playing

FIRST, NEWER = "a" * 40, "b" * 40
BUILT = Built(release="", model_commit=FIRST, torch="2.11.0+cu130", driver="580.95.05")

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Project:
    """A folder with a deploy.yaml."""

    laptop: AwsLaptop
    port: int

    @property
    def lock(self) -> Path:
        return self.laptop.home / "deploy.lock"

    def held(self) -> Any:
        return json.loads(self.lock.read_text())

    def config(self) -> str:
        return (self.laptop.home / "state/deployctl/.pulumi/project/Pulumi.chat.yaml").read_text()

    def up(self, *words: str) -> str:
        """What it said."""
        done = self.laptop.up("chat", "--file", "deploy.yaml", "--port", str(self.port), *words)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def machine(self, built: Built) -> AbstractContextManager[ScriptedMachine]:
        """The next machine, until it is deleted; `built`: what it says that it runs on."""
        machine = ScriptedMachine(lambda: self.laptop.find_machine("chat"))
        machine.built = built
        return playing(machine)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with aws_laptop(tmp_path_factory.mktemp("home")) as laptop:
        (laptop.home / "deploy.yaml").write_text("ttl: 4h\n")
        yield Project(laptop, free_port())


@pytest.fixture(scope="module")
def first(project: Project) -> Any:
    """The lock after a first `up`, whose machine is gone again."""
    with project.machine(BUILT):
        project.up()
        (machine,) = project.laptop.machines("chat")
        assert project.laptop.run("down", "chat", "--yes").returncode == 0
    assert project.held()["machine"]["image"] == machine["ImageId"]
    return project.held()


@pytest.fixture(scope="module")
def again(project: Project, first: Any) -> Iterator[tuple[ScriptedMachine, str]]:
    """A second machine from the same lock, with another driver, and what `up` said."""
    with project.machine(msgspec.structs.replace(BUILT, driver="590.10.01")) as machine:
        yield machine, project.up()


def test_a_first_up_writes_down_what_was_built(first: Any) -> None:
    machine = first["machine"]
    assert (machine["region"], machine["instance_type"], machine["driver"]) == ("eu-west-1", "g5.xlarge", "580.95.05")
    assert first["model"] == {"source": f"hf:{MODEL}", "commit": FIRST}
    assert first["packages"]["torch"] == "2.11.0+cu130"
    assert first["deployctl"]["version"] == "0.1.0"


def test_the_next_machine_gets_image_commit_and_torch_from_the_lock(project: Project, first: Any, again: Any) -> None:
    config = project.config()
    assert f"model: hf:{MODEL}@{FIRST}" in config
    assert f"image: {first['machine']['image']}" in config
    assert "constraints: torch==2.11.0" in config


def test_what_was_built_otherwise_is_told_and_the_lock_stays(project: Project, first: Any, again: Any) -> None:
    assert "machine.driver: 580.95.05 → 590.10.01; deployctl up --upgrade renews it" in again[1]
    assert project.held() == first


def test_a_deployment_from_the_lock_is_up_already(project: Project, again: Any) -> None:
    assert "nothing changed" in project.up()


def test_preview_holds_to_the_lock_too(project: Project, again: Any) -> None:
    words = [*project.laptop.words, "--file", "deploy.yaml", "--port", str(project.port), "--json"]
    done = project.laptop.run("preview", "chat", *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["same"]


def test_another_wheel_than_the_locks_is_refused_before_anything_is_made(project: Project, first: Any) -> None:
    other = project.laptop.home / "other.lock"
    other.write_text(project.lock.read_text().replace(first["deployctl"]["wheel"], "0" * 64))
    done = project.laptop.up("second", "--lock", str(other))
    assert done.returncode == UsageError.exit_code
    assert "another wheel than the lock file says" in done.stderr
    assert project.laptop.machines("second") == []


def test_an_upgrade_shows_the_difference_first_and_renews_the_lock(project: Project, again: Any) -> None:
    again[0].built = msgspec.structs.replace(BUILT, model_commit=NEWER, torch="2.12.0", driver="590.10.01")
    said = project.up("--upgrade")
    assert said.index("deploy.lock is renewed:") < said.index("chat runs; this changes:")
    assert f"deploy.lock: model.commit: {FIRST} → {NEWER}" in said
    held = project.held()
    assert (held["model"]["commit"], held["packages"]["torch"]) == (NEWER, "2.12.0")
    assert held["machine"]["driver"] == "590.10.01"
