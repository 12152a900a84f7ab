"""provision.automation: Pulumi's real Automation API on a stand-in `pulumi`, with small programs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from provision import backend as backends
from provision.automation import Project, UpdateError, open_project
from provision.errors import CloudError, LockedError, NotFoundError

ROOT = Path(__file__).resolve().parents[2]
HELLO = """
    import pulumi
    from pulumi_command import local
    config = pulumi.Config()
    said = local.Command("said", create="echo " + config.require("word"), opts=pulumi.ResourceOptions(
        additional_secret_outputs=["stdout"]))
    pulumi.log.info("candidates: g6.xlarge/us-east-1a g6.xlarge/us-east-1b")
    pulumi.export("said", pulumi.Output.secret(said.stdout))
"""


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def open_in(user: Path, pulumi: Path, lines: list[str]) -> Callable[[Path], Project]:
    def open_one(folder: Path) -> Project:
        backend = backends.choose_backend(os.environ)
        backends.prepare(backend)
        return Project(pulumi, backend, folder, lines.append)

    return open_one


@pytest.fixture
def project(open_in: Callable[[Path], Project], program: Callable[[str], Path]) -> Project:
    return open_in(program(HELLO))


def test_up_makes_same_and_destroy_ends_with_an_empty_backend(project: Project, lines: list[str]) -> None:
    stack = project.open_or_create("chat")
    stack.set_config({"deployctl:word": "hello"}, secret={})
    assert stack.preview().changes["create"] == 1
    assert stack.outputs() == {}
    assert not stack.up().is_same
    assert stack.outputs() == {"said": "hello"}
    assert "  create  command Command said" in lines
    assert stack.up().is_same
    stack.destroy()
    stack.delete()
    assert project.names() == []


def test_secrets_go_in_by_standard_input_and_come_back_in_clear(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    popen = subprocess.Popen

    def watch(args: list[str], **options: object) -> object:
        seen.append(args)
        return popen(args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", watch)
    stack = project.open_or_create("chat")
    stack.set_config({"deployctl:model": "a/b"}, secret={"deployctl:api_key": "sk-very-secret"})
    assert stack.config() == {"deployctl:model": "a/b", "deployctl:api_key": "sk-very-secret"}
    assert seen
    assert "sk-very-secret" not in str(seen)
    assert "sk-very-secret" not in (project.folder / "Pulumi.chat.yaml").read_text()


def test_keys_can_be_taken_out_of_the_config(project: Project) -> None:
    stack = project.open_or_create("chat")
    stack.set_config({"deployctl:word": "hello", "deployctl:port": "8001"}, secret={})
    stack.set_config({}, secret={}, removed=["deployctl:port"])
    assert stack.config() == {"deployctl:word": "hello"}


def test_config_is_recovered_from_the_backend_on_another_laptop(project: Project) -> None:
    stack = project.open_or_create("chat")
    stack.set_config({"deployctl:word": "hello"}, secret={"deployctl:api_key": "sk-x"})
    stack.up()
    (project.folder / "Pulumi.chat.yaml").unlink()
    assert project.open("chat").config() == {"deployctl:word": "hello", "deployctl:api_key": "sk-x"}


def test_a_stack_that_was_never_updated_opens_with_an_empty_config(project: Project) -> None:
    project.open_or_create("chat")
    assert project.open("chat").config() == {}


def test_an_unknown_deployment_is_not_found(project: Project) -> None:
    with pytest.raises(NotFoundError, match="nobody"):
        project.open("nobody")


def test_a_failing_resource_is_an_error_with_its_raw_text_and_the_candidates(
    project: Project, program: Callable[[str], Path]
) -> None:
    stack = project.open_or_create("chat")
    stack.set_config({"deployctl:word": "x; echo InsufficientInstanceCapacity >&2; exit 1"}, secret={})
    with pytest.raises(UpdateError) as caught:
        stack.up()
    assert any("InsufficientInstanceCapacity" in text for text in caught.value.messages)
    assert [str(place) for place in caught.value.candidates] == ["g6.xlarge/us-east-1a", "g6.xlarge/us-east-1b"]
    assert not caught.value.of_program


def test_a_program_that_refuses_is_told_apart_from_a_resource_that_fails(
    open_in: Callable[[Path], Project], program: Callable[[str], Path]
) -> None:
    stack = open_in(program("import pulumi\nraise pulumi.RunError('it does not fit')\n")).open_or_create("chat")
    with pytest.raises(UpdateError) as caught:
        stack.up()
    assert caught.value.of_program
    assert caught.value.messages == ("it does not fit",)


PAIR = """
    import pulumi
    from pulumi_command import local
    first = local.Command("first", create="echo 1", delete="touch first-deleted", dir=pulumi.get_root_directory())
    local.Command("second", create=first.stdout.apply("echo {}".format), delete="touch second-deleted",
                  dir=pulumi.get_root_directory(), opts=pulumi.ResourceOptions(depends_on=[first]))
"""


@pytest.mark.slow
def test_a_resource_taken_out_of_the_state_stays_and_what_depends_on_it_still_goes(
    open_in: Callable[[Path], Project], program: Callable[[str], Path]
) -> None:
    folder = program(PAIR)
    stack = open_in(folder).open_or_create("chat")
    stack.up()
    (urn,) = [item["urn"] for item in stack.resources() if item["urn"].endswith("::first")]
    stack.forget_resource(urn)
    stack.destroy()
    assert (folder / "second-deleted").exists()
    assert not (folder / "first-deleted").exists()


def lock_of(user: Path, holder: str) -> Path:
    lock = user / "state/deployctl/.pulumi/backend/.pulumi/locks/deployctl/chat.json"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text(holder)
    return lock


def test_the_lock_of_a_command_that_died_here_is_taken_away(project: Project, user: Path, lines: list[str]) -> None:
    stack = project.open_or_create("chat")
    stack.set_config({"deployctl:word": "hello"}, secret={})
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock_of(user, f"created by me@{socket.gethostname()} (pid {dead.pid}) at now")
    stack.up()
    assert any("the lock is taken away" in line for line in lines)


@pytest.mark.parametrize("host", ["another-laptop", None])
def test_the_lock_of_a_command_that_may_live_is_respected_and_names_it(
    project: Project, user: Path, host: str | None
) -> None:
    stack = project.open_or_create("chat")
    stack.set_config({"deployctl:word": "hello"}, secret={})
    lock = lock_of(user, f"created by ann@{host or socket.gethostname()} (pid {os.getpid()}) at now")
    with pytest.raises(LockedError, match=f"ann on {host or socket.gethostname()}, pid {os.getpid()}"):
        stack.up()
    assert lock.exists()


def test_a_missing_passphrase_names_the_variable(project: Project, monkeypatch: pytest.MonkeyPatch, user: Path) -> None:
    stack = project.open_or_create("chat")
    del project.variables["PULUMI_CONFIG_PASSPHRASE_FILE"]
    with pytest.raises(CloudError) as caught:
        stack.set_config({}, secret={"deployctl:api_key": "sk-x"})
    assert "PULUMI_CONFIG_PASSPHRASE_FILE" in (caught.value.next_command or "")


SLOW = """
    import pulumi
    from pulumi_command import local
    config = pulumi.Config()
    slow = "touch begun; while [ ! -e go ]; do sleep 0.05; done"
    first = local.Command("first", create=slow, dir=config.require("dir"))
    local.Command("second", create="echo second", opts=pulumi.ResourceOptions(depends_on=[first]))
"""
UP = """
    import os, sys
    from pathlib import Path
    from provision import backend as backends
    from provision.automation import Project
    backend = backends.choose_backend(os.environ)
    project = Project(Path(sys.argv[1]), backend, Path(sys.argv[2]), lambda line: print(line, flush=True))
    stack = project.open_or_create("chat")
    stack.set_config({"deployctl:dir": sys.argv[2]}, secret={})
    try:
        print(dict(stack.up().changes))
    except KeyboardInterrupt:
        print("interrupted", [item["urn"].rpartition("::")[2] for item in stack.resources()], stack.pending())
"""


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


def start_up(pulumi: Path, folder: Path) -> subprocess.Popen[str]:
    argv = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(UP), str(pulumi), str(folder)]
    return subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


@pytest.mark.slow
def test_ctrl_c_lets_the_operation_in_flight_end_and_the_same_command_goes_on(
    pulumi: Path, user: Path, program: Callable[[str], Path]
) -> None:
    backends.prepare(backends.choose_backend(os.environ))
    folder = program(SLOW)
    child = start_up(pulumi, folder)
    wait_for(folder / "begun")
    child.send_signal(signal.SIGINT)
    (folder / "go").touch()
    said = child.communicate(timeout=60)[0]
    assert "pulumi finishes what is in flight" in said
    interrupted = said.splitlines()[-1]
    assert interrupted.startswith("interrupted")
    assert "'first'" in interrupted
    assert "'second'" not in interrupted
    assert interrupted.endswith("[]")
    again = start_up(pulumi, folder).communicate(timeout=60)[0]
    assert "'same': 1" in again
    assert "'create': 1" in again


@pytest.mark.slow
def test_more_ctrl_c_ends_it_at_once_and_what_was_open_is_known(
    pulumi: Path, user: Path, program: Callable[[str], Path]
) -> None:
    backends.prepare(backends.choose_backend(os.environ))
    folder = program(SLOW)
    child = start_up(pulumi, folder)
    wait_for(folder / "begun")
    said = ""
    for _ in range(3):  # two that come at the same moment count as one
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            said = child.communicate(timeout=3)[0]
            break
    (folder / "go").touch()
    assert "ending pulumi at once" in said
    assert "::first']" in said.splitlines()[-1]


def test_the_project_of_the_machine_runs_the_installed_program(user: Path, pulumi: Path) -> None:
    project = open_project(lambda line: None)
    assert project.folder == user / "state/deployctl/.pulumi/project"
    assert (project.folder / "__main__.py").is_file()
    assert project.names() == []
