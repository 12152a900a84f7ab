"""The gates before the weights, the folder of releases, and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from agent_machine import ROOT, a_deployment

from runtime import cli
from runtime.agent import phases
from runtime.agent.releases import Failure, ReleaseError, Releases
from runtime.agent.serving import failure_of
from runtime.agent.status import PhaseError, Progress, StatusBoard
from runtime.agent.units import UnitState
from runtime.deployment import encode
from runtime.mailbox import STATUS, Current, FolderMailbox, decode_status, release_key


def test_this_interpreter_passes_the_python_gate() -> None:
    phases.check_python()


def test_room_for_weights_and_margin_is_enough_and_one_byte_less_is_not(tmp_path: Path) -> None:
    need = 10 * 2**30
    phases.check_disk(tmp_path, need, lambda _: need + phases.MARGIN_BYTES)
    with pytest.raises(PhaseError) as caught:
        phases.check_disk(tmp_path, need, lambda _: need + phases.MARGIN_BYTES - 1)
    assert f"{need + phases.MARGIN_BYTES} bytes" in caught.value.error
    assert f"{need + phases.MARGIN_BYTES - 1} bytes" in caught.value.error


def test_the_disk_of_a_folder_that_is_not_there_yet_is_that_of_its_parent(tmp_path: Path) -> None:
    asked: list[Path] = []

    def free_bytes(folder: Path) -> int:
        asked.append(folder)
        return 2**40

    phases.check_disk(tmp_path / "a" / "b", 0, free_bytes)
    assert asked == [tmp_path]


def test_a_cpu_needs_no_driver() -> None:
    phases.check_driver(a_deployment("r1", "demo"))


def test_cuda_without_a_driver_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PhaseError, match="nvidia-smi is not there") as caught:
        phases.check_driver(a_deployment("r1", "demo", device="cuda"))
    assert "apt install" in caught.value.hint


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "version mismatch"),
        ("echo '510.47.03, NVIDIA A10'", "driver 510.47.03 is too old"),
        ("true", "0 GPUs are visible, tensor_parallel is 1"),
    ],
)
def test_a_driver_that_does_not_serve_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(PhaseError, match=said):
        phases.check_driver(a_deployment("r1", "demo", device="cuda"))


@pytest.mark.parametrize(
    ("driver", "cuda", "good"),
    [
        ("580.95.05", "13.0", True),
        ("570.133.20", "13.0", False),
        ("570.133.20", "12.8", True),
        ("570.133.20", None, True),
        ("595.10", "14.0", True),
    ],
)
def test_the_driver_must_fit_the_cuda_of_the_installed_torch(driver: str, cuda: str | None, good: bool) -> None:
    listing = f"{driver}, NVIDIA A10\n" * 2
    if good:
        phases.check_gpus(listing, 2, cuda)
    else:
        with pytest.raises(PhaseError, match=f"driver {driver} is too old for CUDA {cuda}"):
            phases.check_gpus(listing, 2, cuda)


def test_a_cpu_build_of_torch_is_refused_for_cuda_only() -> None:
    phases.check_runtime(a_deployment("r1", "demo"))
    if phases.cuda_build() is None:
        with pytest.raises(PhaseError, match="is a CPU build"):
            phases.check_runtime(a_deployment("r1", "demo", device="cuda"))


@pytest.mark.parametrize(("version", "good"), [("2.10.1", False), ("2.11.0+cpu", True), ("2.14.0", False)])
def test_torch_outside_the_tested_range_is_refused(tmp_path: Path, version: str, good: bool) -> None:
    """In whichever environment it is: a VM's agent looks into the release's."""
    metadata = tmp_path / f"torch-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    if good:
        phases.check_runtime(a_deployment("r1", "demo"), [str(tmp_path)])
    else:
        with pytest.raises(PhaseError, match=r"torch>=2\.11,<2\.14|is not supported"):
            phases.check_runtime(a_deployment("r1", "demo"), [str(tmp_path)])


def test_the_torch_range_is_the_one_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["runtime"]
    low, high = (".".join(map(str, bound)) for bound in (phases.TORCH_FROM, phases.TORCH_BELOW))
    assert f"torch>={low},<{high}" in extra


def test_the_agent_and_the_supervisor_import_no_torch_and_no_hub_client() -> None:
    code = (
        "import sys, runtime.cli, runtime.agent.main, runtime.agent.supervisor\n"
        "print([m for m in ('torch', 'huggingface_hub', 'httpx', 'asyncio', 'pydantic') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def installed(releases: Releases, mailbox: FolderMailbox, name: str) -> Current:
    current = Current(release=name, deployment=release_key(name))
    mailbox.put(current.deployment, encode(a_deployment(name, "demo")))
    releases.install(mailbox, current)
    return current


def test_current_is_switched_in_one_step_and_read_back(tmp_path: Path) -> None:
    releases, mailbox = Releases(tmp_path / "machine"), FolderMailbox(tmp_path / "mailbox")
    assert releases.current() is None
    for name in ("r1", "r2"):
        release = releases.install(mailbox, installed(releases, mailbox, name))
        releases.switch(release)
        assert releases.current() == release
    assert sorted(path.name for path in (tmp_path / "machine").iterdir()) == ["current", "releases"]


def test_a_release_name_cannot_leave_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="not a plain name"):
        Releases(tmp_path).install(FolderMailbox(tmp_path), Current(release="../../etc", deployment="x"))


def test_a_broken_deployment_names_its_key_and_field(tmp_path: Path) -> None:
    mailbox = FolderMailbox(tmp_path / "mailbox")
    mailbox.put("release/r1/deployment.json", b'{"name": 1}')
    with pytest.raises(ReleaseError, match=r"release/r1/deployment\.json: .*\$\.name"):
        Releases(tmp_path).install(mailbox, Current(release="r1", deployment="release/r1/deployment.json"))


def test_the_way_back_is_the_release_that_served_last_and_was_not_given_up(tmp_path: Path) -> None:
    releases, mailbox = Releases(tmp_path / "machine"), FolderMailbox(tmp_path / "mailbox")
    made = {name: releases.install(mailbox, installed(releases, mailbox, name)) for name in ("r1", "r2", "r3")}
    for number, name in enumerate(("r2", "r1")):
        made[name].mark_ready()
        os.utime(made[name].folder / "ready", ns=(number, number))
    assert releases.last_proven(besides="r3") == made["r1"]
    made["r1"].mark_failed(Failure(phase="load", error="no"))
    assert releases.last_proven(besides="r3") == made["r2"]
    assert releases.last_proven(besides="r2") is None


def test_a_supervisor_start_gives_failed_releases_a_new_chance(tmp_path: Path) -> None:
    releases, mailbox = Releases(tmp_path / "machine"), FolderMailbox(tmp_path / "mailbox")
    current = installed(releases, mailbox, "r1")
    release = releases.install(mailbox, current)
    release.mark_failed(Failure(phase="load", error="no"))
    assert release.failure() == Failure(phase="load", error="no")
    releases.seed(mailbox, current)
    assert release.failure() is None
    assert releases.current() == release


def test_an_unchanged_status_is_not_written_again(tmp_path: Path) -> None:
    board, mailbox = StatusBoard(FolderMailbox(tmp_path)), FolderMailbox(tmp_path)
    board.post("r1", "weights", Progress(percent=10.0))
    first = mailbox.get(STATUS)
    board.post("r1", "weights", Progress(percent=10.0))
    assert mailbox.get(STATUS) == first
    board.post("r1", "weights", error="disk full")
    told = mailbox.get(STATUS)
    assert told is not None
    assert decode_status(told).error == "disk full"


def test_a_units_last_line_becomes_error_and_hint() -> None:
    line = "error: model.layers is missing | hint: fetch the model again"
    error = failure_of(UnitState(name="engine", state="failed", exit_code=78, last_lines=("noise", line)))
    assert (error.error, error.hint) == ("engine: model.layers is missing", "fetch the model again")
    killed = failure_of(UnitState(name="server", state="failed", exit_code=-9))
    assert "signal 9" in killed.error
    assert "deployctl logs server" in killed.hint


def test_a_wrong_command_line_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["supervise", "--state", "s", "--mailbox", "m", "--host", "h", "--port", "70000"])
    assert caught.value.code == 2
    assert "70000 is not a port" in capsys.readouterr().err


def test_an_agent_without_a_supervisor_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["agent", "--state", str(tmp_path), "--mailbox", str(tmp_path)]) == 1
    assert "deployctl up" in capsys.readouterr().err
