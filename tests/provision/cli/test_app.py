"""provision.cli.app: fast start, errors with exit codes, clean stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from provision import errors
from provision.cli.app import COMMANDS, load

RUN = "from provision.cli import main; main()"
HEAVY = ("provision.spec", "httpx", "huggingface_hub", "torch", "yaml", "transformers", "asyncio")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("HOME", str(tmp_path))  # where pulumi remembers a login
    for name in ("PULUMI_BACKEND_URL", "PULUMI_ACCESS_TOKEN", "PULUMI_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def deployctl(*words: str, code: str = RUN, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, input=stdin, check=False, timeout=60
    )


def imported(*words: str) -> set[str]:
    """Modules that a command has imported by its end."""
    code = "import atexit, sys; atexit.register(lambda: print('modules:', *sys.modules, file=sys.__stderr__)); " + RUN
    said = deployctl(*words, code=code).stderr
    return set(said.rpartition("modules:")[2].split())


@pytest.mark.parametrize("words", [("--help",), ("status",), ("ps",), ("version",), ("down",)])
def test_light_commands_import_nothing_heavy(words: tuple[str, ...]) -> None:
    modules = imported(*words)
    assert "provision.cli.app" in modules
    assert modules.isdisjoint(HEAVY)


def test_help_does_not_wait_for_pydantic() -> None:
    """Typer itself imports pydantic where it is installed, but only to run a command."""
    assert "pydantic" not in imported("--help")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_json(name: str) -> None:
    command = load(name)
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"], prog_name=f"deployctl {name}")
    assert ended.value.code == 0
    leaves = list(command.commands.values()) if hasattr(command, "commands") else [command]
    for leaf in leaves:
        assert "--json" in {option for parameter in leaf.params for option in parameter.opts}


def test_help_lists_every_command() -> None:
    shown = deployctl("--help").stdout
    assert all(f" {name} " in shown for name in COMMANDS)


def test_an_unknown_option_is_a_usage_error_with_the_nearest_one() -> None:
    done = deployctl("up", "--instance-typ", "x")
    assert done.returncode == 2
    assert "--instance-type" in done.stderr


def test_an_error_goes_to_stderr_with_its_next_command() -> None:
    done = deployctl("status")
    assert done.returncode == errors.NotFoundError.exit_code
    assert done.stdout == ""
    assert "error: there is no deployment" in done.stderr
    assert "next: deployctl up" in done.stderr


def test_an_error_with_json_is_json_on_stdout() -> None:
    done = deployctl("status", "nobody", "--json")
    error = json.loads(done.stdout)["error"]
    assert (error["kind"], error["exit_code"]) == ("NotFoundError", done.returncode)
    assert done.stderr == ""


def test_a_wrong_spec_names_every_error_at_once() -> None:
    done = deployctl("up", "--port", "99999", "--name", "X")
    assert done.returncode == errors.SpecError.exit_code
    assert "port" in done.stderr
    assert "name" in done.stderr


def test_a_folder_that_cannot_be_written_is_an_expected_error(home: Path) -> None:
    (home / "state").write_text("a file where the folder should be")
    done = deployctl("up", "chat", "--model", "demo", "--port", "18999", "--yes")
    assert "Traceback" not in done.stderr
    assert done.returncode == errors.StateError.exit_code


def test_a_cloud_is_planned_before_anything_else_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here: whether the pulumi command may be downloaded, which nobody can be asked without a terminal."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    done = deployctl("up", "--cloud", "aws", "--instance-type", "g6.xlarge", "--model", "Qwen/Qwen2.5-7B-Instruct")
    assert done.returncode == errors.UsageError.exit_code
    assert "$0.8" in done.stderr
    assert done.stderr.index("fits") < done.stderr.index("its command is not on this machine")
    assert "next: deployctl up --cloud aws --yes" in done.stderr


def test_preview_is_for_clouds() -> None:
    done = deployctl("preview", "--model", "demo")
    assert done.returncode == errors.UsageError.exit_code
    assert "deployctl plan" in done.stderr


def test_version_is_json_with_json() -> None:
    assert "python" in json.loads(deployctl("version", "--json").stdout)


def test_the_shell_completes_commands_and_names(home: Path) -> None:
    (home / "state" / "deployctl" / "chat").mkdir(parents=True)
    env = {**os.environ, "_DEPLOYCTL_COMPLETE": "complete_bash"}

    def complete(line: str) -> list[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        argv = [sys.executable, "-c", RUN]
        return subprocess.run(argv, env=env | words, capture_output=True, text=True, check=False).stdout.split()

    assert "status" in complete("deployctl st")
    assert complete("deployctl status ch") == ["chat"]


def test_every_error_has_its_own_exit_code_and_meaning() -> None:
    rows = errors.exit_codes()
    assert len({code for code, _, _ in rows}) == len(rows)
    assert all(meaning for _, _, meaning in rows)


@pytest.mark.parametrize(
    ("number", "kind"), [(28, errors.DiskFullError), (13, errors.StateError), (30, errors.StateError)]
)
def test_failed_system_calls_become_expected_errors(number: int, kind: type[errors.DeployctlError]) -> None:
    found = errors.from_os_error(OSError(number, "reason", "/a/file"))
    assert isinstance(found, kind)
    assert "/a/file" in found.what


def test_a_system_call_that_fails_for_no_known_reason_stays_a_bug() -> None:
    assert errors.from_os_error(OSError(5, "I/O error")) is None
