"""Users, folders and units of a VM. On real systemd: tests/e2e/test_cloud_*."""

from __future__ import annotations

import configparser
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runtime.agent import install
from runtime.agent.install import InstallError, install_agent, open_port, packages_to_hold, render
from runtime.cli import main
from runtime.vm import ENGINE_USER, GROUP, RUN_DIR, SERVER_USER, STATE_DIR

UNITS = (install.AGENT_UNIT, install.SOCKET_UNIT, install.SERVER_UNIT, install.ENGINE_UNIT)
WORST_EXPOSURE = {install.SERVER_UNIT: 2.5, install.ENGINE_UNIT: 3.0}  # systemd-analyze security; 10 is no protection
LISTING = "ii bash\nii linux-image-6.8.0-1021-aws\nii nvidia-driver-580-server\nrc libnvidia-gl-535\nii libcuda1\n"


@dataclass
class Machine:
    """Notes the commands instead of running them."""

    calls: list[tuple[str, ...]] = field(default_factory=list)
    refuse: tuple[tuple[str, ...], ...] = ()

    def __call__(self, argv: tuple[str, ...]) -> str:
        self.calls.append(argv)
        if argv in self.refuse:
            raise InstallError(f"{' '.join(argv)} is refused", "hint")
        return LISTING if argv[0] == "dpkg-query" else ""


def unit(name: str, port: int = 8000) -> configparser.RawConfigParser:
    """Keys that stand several times in a unit keep their last value."""
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(render(f"{name}.j2", port))
    return parser


def test_an_installation_makes_users_and_folders_first_and_starts_the_agent_last(tmp_path: Path) -> None:
    machine = Machine()
    install_agent(tmp_path, machine)
    words = [call[:2] for call in machine.calls]
    assert words[0] == ("systemd-sysusers", str(install.SYSUSERS))
    assert words[1] == ("systemd-tmpfiles", "--create")
    assert machine.calls[-1] == ("systemctl", "start", install.AGENT_UNIT)
    assert words.index(("systemctl", "daemon-reload")) < words.index(("systemctl", "enable"))


def test_an_installation_may_be_repeated(tmp_path: Path) -> None:
    install_agent(tmp_path, Machine())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    install_agent(tmp_path, again := Machine())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    assert again.calls[-1] == ("systemctl", "start", install.AGENT_UNIT)  # a running one is left alone by systemd


def test_what_is_written_can_be_read_by_all_and_changed_by_root_only(tmp_path: Path) -> None:
    install_agent(tmp_path, Machine())
    open_port(8000, tmp_path, Machine())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {*UNITS, "deployctl.conf"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="no dpkg on this machine")
def test_upgrades_are_masked_and_driver_and_kernel_are_held(tmp_path: Path) -> None:
    machine = Machine()
    install_agent(tmp_path, machine)
    assert ("systemctl", "mask", *install.MASKED) in machine.calls
    assert ("apt-mark", "hold", "libcuda1", "linux-image-6.8.0-1021-aws", "nvidia-driver-580-server") in machine.calls


def test_only_installed_packages_of_driver_and_kernel_are_held() -> None:
    listing = (
        "ii linux-headers-cloud-amd64\nii linux-libc-dev\nii nvidia-kernel-common-580-server\nun nvidia-smi\n"
        "ii libnvidia-compute-580-server\nii cuda-drivers\nii python3\n\nii linux-modules-6.8.0-1021-aws\n"
    )
    assert packages_to_hold(listing) == (
        "cuda-drivers",
        "libnvidia-compute-580-server",
        "linux-headers-cloud-amd64",
        "linux-modules-6.8.0-1021-aws",
        "nvidia-kernel-common-580-server",
    )


def test_a_step_that_fails_is_an_error_with_a_hint(tmp_path: Path) -> None:
    machine = Machine(refuse=(("systemctl", "daemon-reload"),))
    with pytest.raises(InstallError, match="daemon-reload is refused") as caught:
        install_agent(tmp_path, machine)
    assert caught.value.hint


def test_an_open_port_is_left_alone(tmp_path: Path) -> None:
    assert open_port(8000, tmp_path, Machine())
    assert not open_port(8000, tmp_path, again := Machine())
    assert not any(call[1] in ("stop", "restart") for call in again.calls)
    assert again.calls[-1] == ("systemctl", "start", install.SOCKET_UNIT)


def test_another_port_closes_the_old_one(tmp_path: Path) -> None:
    open_port(8000, tmp_path, Machine())
    assert open_port(9000, tmp_path, machine := Machine())
    stop = ("systemctl", "stop", install.SERVER_UNIT, install.SOCKET_UNIT)
    assert machine.calls.index(stop) < machine.calls.index(("systemctl", "start", install.SOCKET_UNIT))
    assert "ListenStream=0.0.0.0:9000" in (tmp_path / "etc/systemd/system" / install.SOCKET_UNIT).read_text()


@pytest.mark.parametrize("cut_at", ["stop", "daemon-reload", "start"])
def test_a_change_of_port_that_was_cut_off_is_finished_by_the_next_attempt(tmp_path: Path, cut_at: str) -> None:
    open_port(8000, tmp_path, Machine())

    class Cut(Exception):
        pass

    def cut(argv: tuple[str, ...]) -> str:
        if argv[1] == cut_at:
            raise Cut
        return ""

    with pytest.raises(Cut):
        open_port(9000, tmp_path, cut)
    open_port(9000, tmp_path, machine := Machine())
    assert "ListenStream=0.0.0.0:9000" in (tmp_path / "etc/systemd/system" / install.SOCKET_UNIT).read_text()
    words = [call[1] for call in machine.calls]
    assert words.index("daemon-reload") < words.index("start")
    assert ("stop" in words) == (cut_at == "stop")  # what is stopped already need not be


def test_units_that_a_new_version_changes_are_loaded_without_closing_the_port(tmp_path: Path) -> None:
    open_port(8000, tmp_path, Machine())
    (tmp_path / "etc/systemd/system" / install.ENGINE_UNIT).write_text("of an older version")
    assert open_port(8000, tmp_path, machine := Machine())
    assert [call[1] for call in machine.calls] == ["daemon-reload", "reset-failed", "start"]


@pytest.mark.parametrize(("name", "user"), [(install.SERVER_UNIT, SERVER_USER), (install.ENGINE_UNIT, ENGINE_USER)])
def test_server_and_engine_have_users_of_their_own_and_little_else(name: str, user: str) -> None:
    found = unit(name)["Service"]
    assert found["User"] == user
    assert found["SupplementaryGroups"] == GROUP
    assert found["NoNewPrivileges"] == found["PrivateTmp"] == "yes"
    assert found["ProtectSystem"] == "strict"
    assert found["ReadWritePaths"] == str(RUN_DIR)
    assert found["CapabilityBoundingSet"] == ""


def test_neither_server_nor_engine_reaches_the_metadata_service() -> None:
    denied = unit(install.SERVER_UNIT)["Service"]["IPAddressDeny"].split()
    assert {"169.254.169.254", "100.100.100.200", "fd00:ec2::254"} <= set(denied)
    engine = unit(install.ENGINE_UNIT)["Service"]
    assert (engine["IPAddressDeny"], engine["IPAddressAllow"]) == ("any", "localhost")


def test_the_engine_may_use_every_gpu() -> None:
    closes_devices = {"PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock"}  # systemd.exec(5)
    assert not closes_devices & set(unit(install.ENGINE_UNIT)["Service"])


def test_an_engine_that_cannot_work_is_not_started_again() -> None:
    found = unit(install.ENGINE_UNIT)
    assert found["Service"]["Restart"] == "always"
    assert found["Service"]["RestartPreventExitStatus"] == "78"
    assert int(found["Unit"]["StartLimitBurst"]) > 0


def test_systemd_never_gives_the_server_up_because_it_would_close_the_port_with_it() -> None:
    found = unit(install.SERVER_UNIT)
    assert found["Unit"]["StartLimitIntervalSec"] == "0"
    assert found["Service"]["Restart"] == "always"
    assert "RestartPreventExitStatus" not in found["Service"]
    assert unit(install.SOCKET_UNIT)["Socket"]["TriggerLimitIntervalSec"] == "0"


def test_only_the_agent_starts_with_the_machine() -> None:
    assert [name for name in UNITS if unit(name).has_section("Install")] == [install.AGENT_UNIT]


def test_stage_0_is_told_when_systemd_gives_the_agent_up() -> None:
    assert unit(install.AGENT_UNIT)["Unit"]["OnFailure"] == "deployctl-stage0.service"


@pytest.mark.parametrize("unit_name", [install.AGENT_UNIT, install.SERVER_UNIT, install.ENGINE_UNIT])
def test_every_unit_starts_a_command_that_exists(unit_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = unit(unit_name)["Service"]["ExecStart"].replace("\\\n", " ")
    program, command, *_ = line.split()
    assert program.endswith("/bin/deployctl-runtime")
    with pytest.raises(SystemExit) as ended:
        main([*line.split()[1:], "--help"])
    assert ended.value.code == 0
    assert command in capsys.readouterr().out


@pytest.fixture
def verified(tmp_path: Path) -> Callable[[], list[str]]:
    """Complaints of `systemd-analyze verify` on all units, but for programs that this machine does not have."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze on this machine")
    for name in UNITS:
        (tmp_path / name).write_text(render(f"{name}.j2", 8000))
    stage0 = install._read("deployctl-stage0.service")
    (tmp_path / "deployctl-stage0.service").write_text(stage0)

    def verify() -> list[str]:
        argv = ["systemd-analyze", "verify", "--man=no", *(str(path) for path in tmp_path.glob("deployctl*"))]
        said = subprocess.run(argv, capture_output=True, text=True, check=False).stderr
        return [line for line in said.splitlines() if "is not executable: No such file" not in line]

    return verify


def test_systemd_understands_every_line_of_every_unit(verified: Callable[[], list[str]]) -> None:
    assert verified() == []


@pytest.mark.parametrize("name", list(WORST_EXPOSURE))
def test_systemds_own_judgement_of_server_and_engine(name: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze on this machine")
    (tmp_path / name).write_text(render(f"{name}.j2", 8000))
    threshold = int(WORST_EXPOSURE[name] * 10)
    argv = ["systemd-analyze", "security", "--offline=true", f"--threshold={threshold}", str(tmp_path / name)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_users_and_folders_are_what_systemd_makes_of_the_files(tmp_path: Path) -> None:
    if shutil.which("systemd-sysusers") is None:
        pytest.skip("no systemd-sysusers on this machine")
    (tmp_path / "etc").mkdir()
    file = tmp_path / "sysusers.conf"
    file.write_text(render("sysusers.conf.j2"))
    done = subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    users = [line.split(":") for line in (tmp_path / "etc/passwd").read_text().splitlines()]
    assert {(user[0], user[6]) for user in users} == {
        (SERVER_USER, "/usr/sbin/nologin"),
        (ENGINE_USER, "/usr/sbin/nologin"),
    }
    groups = {line.split(":")[0]: line.split(":")[3] for line in (tmp_path / "etc/group").read_text().splitlines()}
    assert set(groups[GROUP].split(",")) == {SERVER_USER, ENGINE_USER}


def test_the_shared_folder_lets_nobody_replace_anothers_file() -> None:
    lines = [line.split() for line in render("tmpfiles.conf.j2").splitlines() if not line.startswith("#")]
    folders = {line[1]: (line[2], line[3], line[4]) for line in lines}
    assert folders[str(RUN_DIR)] == ("3770", "root", GROUP)
    assert folders[f"{STATE_DIR}/tls"] == ("2750", "root", SERVER_USER)


def test_the_command_refuses_a_machine_that_is_no_vm_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["install", "--vm", str(tmp_path / "vm.json")]) == 1
    assert "hint: this command is for a VM that deployctl has made" in capsys.readouterr().err
