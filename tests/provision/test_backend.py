"""provision.backend: whose backend counts, what is written where, and the lines for a plain `pulumi`."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from provision import backend
from provision.errors import MissingPartError
from provision.trust import bundle_file, forget_files, pin_file


@pytest.mark.parametrize("variable", ["PULUMI_BACKEND_URL", "PULUMI_ACCESS_TOKEN"])
def test_the_backend_of_the_environment_counts(user: Path, variable: str) -> None:
    found = backend.choose_backend({variable: "x"})
    assert not found.own
    assert found.variables == ()


def test_the_backend_that_the_user_is_logged_in_to_counts(user: Path) -> None:
    folder = user / ".pulumi"
    folder.mkdir()
    (folder / "credentials.json").write_text(json.dumps({"current": "https://api.pulumi.com"}))
    assert not backend.choose_backend({}).own
    (folder / "credentials.json").write_text(json.dumps({"current": ""}))
    assert backend.choose_backend({}).own


def test_without_a_login_a_folder_and_a_private_random_passphrase_are_made(user: Path) -> None:
    found = backend.choose_backend({})
    backend.prepare(found)
    root = user / "state/deployctl/.pulumi"
    assert dict(found.variables)["PULUMI_BACKEND_URL"] == f"file://{root}/backend"
    passphrase = root / "passphrase"
    assert passphrase.stat().st_mode & 0o777 == 0o600
    before = passphrase.read_bytes()
    assert len(before) > 40
    backend.prepare(found)
    assert passphrase.read_bytes() == before


def test_the_users_own_passphrase_is_respected(user: Path) -> None:
    found = backend.choose_backend({"PULUMI_CONFIG_PASSPHRASE": "mine"})
    backend.prepare(found)
    assert [name for name, _ in found.variables] == ["PULUMI_BACKEND_URL"]
    assert not (user / "state/deployctl/.pulumi/passphrase").exists()


def test_nobody_waits_for_pulumi_where_there_can_be_no_stack(user: Path) -> None:
    assert not backend.may_hold_stacks({})
    backend.prepare(backend.choose_backend({}))
    assert backend.may_hold_stacks({})


def test_the_project_runs_in_the_virtual_environment_that_deployctl_runs_in() -> None:
    project = yaml.safe_load(backend.project_text("/a/venv", "/usr"))
    assert project["runtime"]["options"] == {"virtualenv": "/a/venv"}
    assert project["name"] == "deployctl"
    assert yaml.safe_load(backend.project_text("/usr", "/usr"))["runtime"]["options"] == {}


def test_a_changed_interpreter_renews_the_project_and_keeps_its_config(user: Path) -> None:
    folder = backend.prepare(backend.choose_backend({}))
    (folder / "Pulumi.chat.yaml").write_text("config: {}\n")
    (folder / "Pulumi.yaml").write_text("name: old\n")
    backend.prepare(backend.choose_backend({}))
    assert yaml.safe_load((folder / "Pulumi.yaml").read_text())["name"] == "deployctl"
    assert (folder / "Pulumi.chat.yaml").exists()


def test_the_command_on_path_wins_over_our_own_copy(user: Path, pulumi: Path) -> None:
    own = backend.own_copy() / "bin" / "pulumi"
    own.parent.mkdir(parents=True)
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert backend.find_pulumi(os.environ) == pulumi
    assert backend.find_pulumi({"PATH": "/nowhere"}) == own


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backend.CLOUD_MODULES, "aws", ("json", "no_such_module"))
    with pytest.raises(MissingPartError, match="no_such_module") as caught:
        backend.check_parts("aws")
    assert caught.value.next_command == "pip install 'deployctl[aws]'"
    backend.check_parts("alicloud")


def test_after_the_printed_lines_a_plain_pulumi_sees_the_same_stacks(user: Path, pulumi: Path) -> None:
    from provision.automation import open_project

    open_project(lambda line: None).open_or_create("chat")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    printed = subprocess.run(
        [sys.executable, "-m", "provision.cli", "config", "pulumi"], env=env, capture_output=True, text=True, check=True
    ).stdout
    script = f"{printed}\npulumi stack ls --json"
    found = subprocess.run(["sh", "-c", script], env=env, capture_output=True, text=True, check=True).stdout
    assert [stack["name"] for stack in json.loads(found)] == ["chat"]
    assert all(shlex.split(line)[0] in ("export", "cd") for line in printed.splitlines())


def test_certificates_are_files_that_go_with_their_deployment(user: Path) -> None:
    pin, bundle = pin_file("chat", "PEM\n"), bundle_file("chat", "PEM\n")
    assert pin.read_text() == "PEM\n"
    assert bundle.read_text().endswith("\nPEM\n")
    assert bundle.read_text().count("BEGIN CERTIFICATE") > 50
    forget_files("chat")
    forget_files("chat")
    assert not pin.exists()
    assert not bundle.exists()
