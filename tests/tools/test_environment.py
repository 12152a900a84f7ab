"""The set-up behind `make`: what it asks pip for, what it says when it cannot, and when it starts anew."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools import environment
from tools.environment import Line, SetupError


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The set-up's folder, with pip calls recorded in `calls.txt` in place of made."""
    folder = tmp_path / ".venv"
    calls = tmp_path / "calls.txt"

    def record(title: str, command: list[str], number: int, total: int) -> None:
        with calls.open("a") as file:
            file.write(f"{number}/{total} {title}\n")

    monkeypatch.setattr(environment, "VENV", folder)
    monkeypatch.setattr(environment, "run_logged", record)
    monkeypatch.setattr(environment, "torch_step", lambda: environment.Step("torch", ["torch"]))
    return folder


def titles(venv: Path) -> list[str]:
    return (venv.parent / "calls.txt").read_text().splitlines()


def test_every_step_is_counted(venv: Path) -> None:
    environment.make("up")
    numbers = [line.split()[0] for line in titles(venv)]
    assert numbers == [f"{step}/{environment.STEPS}" for step in range(1, environment.STEPS + 1)]


def test_an_unfinished_environment_is_made_anew(venv: Path) -> None:
    environment.make("up")
    (venv / ".unfinished").touch()
    (venv / "leftover").touch()
    environment.make("up")
    assert not (venv / "leftover").exists()


def test_an_environment_of_another_python_is_made_anew(venv: Path) -> None:
    environment.make("up")
    (venv / ".python").write_text("3.10.1")
    (venv / "leftover").touch()
    environment.make("up")
    assert not (venv / "leftover").exists()


def test_the_test_environment_serves_the_main_job_too(venv: Path) -> None:
    environment.make("dev")
    (venv / "bin").mkdir()
    (venv / "bin" / "python").touch()
    assert environment.is_complete("up")
    (venv / ".complete-dev").unlink()
    environment.make("up")
    assert not environment.is_complete("dev")


def test_a_changed_requirement_makes_the_environment_incomplete(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment.make("up")
    (venv / "bin").mkdir()
    (venv / "bin" / "python").touch()
    monkeypatch.setattr(environment, "fingerprint", lambda: "another")
    assert not environment.is_complete("up")


def test_an_old_python_is_refused_with_the_line_that_installs_a_newer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    with pytest.raises(SetupError, match=r"3\.9 is too old") as refused:
        environment.check_python()
    assert "apt-get install -y python3.11 python3.11-venv" in refused.value.hint


def test_a_python_without_ensurepip_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(SetupError, match="no ensurepip") as refused:
        environment.check_python()
    assert f"python{sys.version_info[0]}.{sys.version_info[1]}-venv" in refused.value.hint


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "has_gpu", lambda: False)
    monkeypatch.delenv("DEPLOYCTL_TORCH", raising=False)


@pytest.mark.usefixtures("no_gpu")
def test_a_cpu_build_that_pip_is_configured_for_needs_no_other_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "chosen_version", lambda _: "2.13.0+cpu")
    assert environment.torch_step().arguments == [environment.torch_requirement()]


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_default_build_is_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "chosen_version", lambda _: "2.13.0")
    monkeypatch.setattr(environment, "answers", lambda _: True)
    assert environment.CPU_INDEX in environment.torch_step().arguments
    monkeypatch.setattr(environment, "answers", lambda _: False)
    with pytest.raises(SetupError, match="several GB of CUDA"):
        environment.torch_step()


def test_with_a_gpu_the_default_build_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "has_gpu", lambda: True)
    assert environment.torch_step().arguments == [environment.torch_requirement()]


def test_pips_raw_progress_becomes_a_percentage() -> None:
    line = Line("[3/5] torch")
    line.say("Downloading torch-2.13.0+cpu.whl (190.1 MB)")
    line.say("Progress 95000000 of 190000000")
    assert line.detail == "Downloading torch-2.13.0+cpu.whl: 50 % of 190 MB"
