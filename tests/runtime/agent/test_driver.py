"""The NVIDIA driver of a VM: waited for where the image brings it, installed from the cloud's mirror where it does not.

nvidia-smi and the cloud's installer are scripts here; the metadata service and the mirror are a real HTTP server.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from agent_machine import a_deployment

from runtime.agent import driver
from runtime.agent.driver import SCRIPT, Driver, installer_argv, installer_url, reboot_argv
from runtime.agent.metadata import Metadata
from runtime.agent.releases import Release
from runtime.agent.status import PhaseError, Progress
from runtime.vm import Provider

WORKS = "#!/bin/sh\necho '580.95.05, NVIDIA A10'\n"
FAILS = "#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n"


@dataclass
class Cloud:
    """Metadata service and mirror in one; `installer` is the script that it offers."""

    tools: Path
    state: Path
    port: int = 0
    installer: str = "exit 0"
    uptime: float = 10_000.0
    commands: list[tuple[str, ...]] = field(default_factory=list)

    def answer(self, path: str) -> bytes | None:
        if path == "/latest/api/token":
            return b"a-token"
        if path == "/latest/meta-data/source-address":
            return f"http://127.0.0.1:{self.port}\nhttp://second.example\n".encode()
        return self.installer.encode() if path == SCRIPT else None

    def call(self, argv: tuple[str, ...]) -> str:
        self.commands.append(argv)
        return ""

    def nvidia_smi(self, script: str) -> None:
        path = self.tools / "nvidia-smi"
        path.write_text(script)
        path.chmod(0o755)

    def driver(self, provider: Provider = "alicloud", boot: str = "boot-1") -> Driver:
        metadata = Metadata(provider, "127.0.0.1", self.port)
        return Driver(provider, self.state, metadata, boot, self.call, lambda: self.uptime, restart_s=0.0)


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path / "bin", tmp_path / "state")
    for folder in (cloud.tools, cloud.state):
        folder.mkdir()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = cloud.answer(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"")

        do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    cloud.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("PATH", f"{cloud.tools}:/usr/bin:/bin")
    monkeypatch.setattr(driver, "ASK_AGAIN_S", 0.05)
    yield cloud
    server.shutdown()
    server.server_close()


def on_gpu() -> Release:
    return Release("r1", Path("/nowhere"), a_deployment("r1", "demo", device="cuda"))


def quiet(_: Progress) -> None:
    return None


def test_the_installer_is_called_as_alibaba_clouds_own_user_data_does() -> None:
    assert installer_argv(Path("/s.sh")) == ("bash", "/s.sh", "580.95.05", "13.0.2", "9.14.0.64", "FALSE", "FALSE")


def test_the_installer_comes_from_the_first_mirror_of_the_metadata() -> None:
    assert installer_url("http://mirror.internal/\nhttp://other\n") == "http://mirror.internal" + SCRIPT
    with pytest.raises(PhaseError, match="names no mirror"):
        installer_url("")


def test_a_deployment_without_a_gpu_asks_nothing(cloud: Cloud) -> None:
    assert cloud.driver().prepare(Release("r1", Path("/nowhere"), a_deployment("r1", "demo")), quiet) is None


def test_a_driver_that_answers_is_told_with_its_version(cloud: Cloud) -> None:
    cloud.nvidia_smi(WORKS)
    assert cloud.driver("aws").prepare(on_gpu(), quiet) == "580.95.05"


def test_soon_after_boot_a_driver_that_does_not_answer_yet_is_waited_for(cloud: Cloud) -> None:
    cloud.nvidia_smi(FAILS)
    cloud.uptime = 20.0
    asked: list[Progress] = []

    def report(progress: Progress) -> None:
        asked.append(progress)
        cloud.nvidia_smi(WORKS)

    assert cloud.driver("aws").prepare(on_gpu(), report) == "580.95.05"
    assert asked


def test_long_after_boot_it_is_an_error(cloud: Cloud) -> None:
    cloud.nvidia_smi(FAILS)
    with pytest.raises(PhaseError, match="nvidia-smi fails: NVIDIA-SMI has failed"):
        cloud.driver("aws").prepare(on_gpu(), quiet)


def test_on_aws_an_image_without_a_driver_is_an_error_at_once(cloud: Cloud) -> None:
    cloud.uptime = 20.0
    with pytest.raises(PhaseError, match="no NVIDIA driver is installed"):
        cloud.driver("aws").prepare(on_gpu(), quiet)


def test_on_alibaba_cloud_the_installer_brings_the_driver_and_upgrades_are_stopped(cloud: Cloud) -> None:
    tool = cloud.tools / "nvidia-smi"
    cloud.installer = f'printf "%s" "$*" > {cloud.state}/args\nprintf "{WORKS!s}" > {tool}\nchmod +x {tool}\n'
    assert cloud.driver().prepare(on_gpu(), quiet) == "580.95.05"
    assert (cloud.state / "args").read_text() == "580.95.05 13.0.2 9.14.0.64 FALSE FALSE"
    assert any(argv[:2] == ("systemctl", "mask") for argv in cloud.commands)
    assert reboot_argv() not in cloud.commands


def test_a_driver_that_needs_a_restart_gets_one_and_reports_no_error_meanwhile(cloud: Cloud) -> None:
    class Shutdown(Exception):
        """What ends the agent when its machine goes down."""

    def report(progress: Progress) -> None:
        if ("systemctl", "reboot") in cloud.commands:
            raise Shutdown

    patient = dataclasses.replace(cloud.driver(), restart_s=60.0)
    with pytest.raises(Shutdown):
        patient.prepare(on_gpu(), report)
    assert cloud.commands[-1] == ("systemctl", "reboot")
    cloud.nvidia_smi(WORKS)
    assert cloud.driver(boot="boot-2").prepare(on_gpu(), quiet) == "580.95.05"


def test_an_installer_that_fails_is_told_with_its_last_line(cloud: Cloud) -> None:
    cloud.installer = "echo 'no such driver: 580.95.05'; exit 3"
    with pytest.raises(PhaseError, match="exit code 3: no such driver") as caught:
        cloud.driver().prepare(on_gpu(), quiet)
    assert "driver.log" in caught.value.hint


def test_after_two_boots_with_the_installer_and_no_driver_it_is_given_up(cloud: Cloud) -> None:
    for boot in ("boot-1", "boot-2"):
        with pytest.raises(PhaseError, match="needs a restart"):
            cloud.driver(boot=boot).prepare(on_gpu(), quiet)
    with pytest.raises(PhaseError, match="has run 2 times") as caught:
        cloud.driver(boot="boot-3").prepare(on_gpu(), quiet)
    assert not caught.value.retry


def test_a_mirror_without_the_installer_is_an_error_that_names_the_way_out(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "SCRIPT", "/not/there.sh")
    with pytest.raises(PhaseError, match="cannot be fetched: HTTP Error 404") as caught:
        cloud.driver().prepare(on_gpu(), quiet)
    assert "image" in caught.value.hint
