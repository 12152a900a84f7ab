"""Phase `driver` on a VM: the NVIDIA driver answers, or is brought to.

AWS's images bring the driver. Alibaba Cloud's public ones do not: there the cloud's own installer is fetched from the
mirror inside its network, which needs no internet, and run. It may restart the machine; the phase goes on after that.
"""

from __future__ import annotations

import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runtime.agent import install, phases
from runtime.agent.command import WORKER, CommandJob
from runtime.agent.host import HostFacts
from runtime.agent.metadata import Metadata, MetadataError
from runtime.agent.releases import Release
from runtime.agent.status import PhaseError, Progress, Report
from runtime.agent.worker import TICK_S, WorkerError, run_worker
from runtime.deployment import Struct
from runtime.mailbox import write_atomic
from runtime.vm import Place

FIRST_BOOT_S = 300.0  # uptime within which a driver that does not answer may only be late
ASK_AGAIN_S = 5.0
STALL_S = 900.0  # building kernel modules is silent, and writes little
ATTEMPTS = 2
RESTART_S = 300.0
SCRIPT = "/opsx/ecs/linux/binary/script/auto_install_v4.0.sh"
# Wheels of torch 2.11 and newer are CUDA 13 builds. Not yet run on a real cloud: if the mirror lacks this driver, the
# installer says so, and an image with a driver is the way.
DRIVER, CUDA, CUDNN = "580.95.05", "13.0.2", "9.14.0.64"
WITHOUT_RDMA = ("FALSE", "FALSE")  # of the machine's network, RDMA and eRDMA
DOWNLOAD_TIMEOUT_S = 30.0


class Attempts(Struct, frozen=True):
    """`driver.json`: how often the installer has run, last in which boot, and whether it came to its end there."""

    count: int
    boot: str
    ended: bool = False


def installer_argv(script: Path) -> tuple[str, ...]:
    """Arguments as in Alibaba Cloud's own user-data: driver, CUDA, cuDNN, RDMA, eRDMA."""
    return ("bash", str(script), DRIVER, CUDA, CUDNN, *WITHOUT_RDMA)


def installer_url(source_address: str) -> str:
    """`source_address`: the metadata entry of that name, one mirror per line. Raises PhaseError."""
    first = source_address.split()[:1]
    if not first:
        raise PhaseError("the metadata service names no mirror (source-address)", "choose an image with a driver")
    return first[0].rstrip("/") + SCRIPT


def reboot_argv() -> tuple[str, ...]:
    return ("systemctl", "reboot")


def uptime_s() -> float:
    """Seconds since the kernel has started."""
    return float(Path("/proc/uptime").read_text().split()[0])


@dataclass(frozen=True, slots=True)
class Driver:
    """`boot_id` tells one boot from the next. `uptime` in seconds; `restart_s`: within which the machine must end."""

    provider: Place
    state: Path
    metadata: Metadata | HostFacts
    boot_id: str
    call: install.Call = install.run_command
    uptime: Callable[[], float] = uptime_s
    restart_s: float = RESTART_S

    def prepare(self, release: Release, report: Report) -> str | None:
        """The driver's version; None for a deployment without a GPU. Raises PhaseError."""
        if release.deployment.engine.device != "cuda":
            return None
        listing = self._listing(report)
        phases.check_gpus(listing, release.deployment.engine.tensor_parallel, None)
        return listing.split(",")[0].strip()

    def _listing(self, report: Report) -> str:
        while True:
            try:
                return phases.list_gpus()
            except PhaseError:
                missing = shutil.which("nvidia-smi") is None
                if self.provider == "alicloud" and (missing or self._attempts() is not None):
                    self._install(report)
                    return phases.list_gpus()
                if missing or self.uptime() > FIRST_BOOT_S:
                    raise
            wait(ASK_AGAIN_S, report)

    def _install(self, report: Report) -> None:
        before = self._attempts()
        log = self.state / "driver.log"
        if before is not None and before.boot != self.boot_id and before.count >= ATTEMPTS:
            raise PhaseError(
                f"the driver's installer has run {before.count} times, and nvidia-smi still does not answer",
                f"see {log} on the machine; or choose an image with a driver (image)",
                retry=False,
            )
        if before is None or not before.ended or before.boot != self.boot_id:
            script = self._fetch()
            count = 1 if before is None else before.count + (before.boot != self.boot_id)
            self._record(Attempts(count=count, boot=self.boot_id))
            job = CommandJob(argv=installer_argv(script), log=str(log), folder=str(self.state))
            try:
                run_worker(WORKER, stdin=msgspec.json.encode(job), report=report, stall_s=STALL_S)
            except WorkerError as error:
                raise PhaseError(f"the driver's installer: {error.error}", f"see {log} on the machine") from error
            self._record(Attempts(count=count, boot=self.boot_id, ended=True))
            install.stop_upgrades(self.call)
        try:
            phases.list_gpus()
        except PhaseError as error:
            self.call(reboot_argv())
            wait(self.restart_s, report)  # it ends this process: a restart is no failure, and none is reported
            raise PhaseError("the driver needs a restart, and the machine does not restart", "restart it") from error

    def _fetch(self) -> Path:
        try:
            url = installer_url(self.metadata.get("source-address") or "")
            with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as answer:
                data: bytes = answer.read()
        except (MetadataError, urllib.error.URLError, OSError) as error:
            raise PhaseError(
                f"the cloud's driver installer cannot be fetched: {error}", "choose an image with a driver (image)"
            ) from error
        script = self.state / "driver-installer.sh"
        write_atomic(script, data)
        return script

    def _attempts(self) -> Attempts | None:
        try:
            return msgspec.json.decode((self.state / "driver.json").read_bytes(), type=Attempts)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _record(self, attempts: Attempts) -> None:
        write_atomic(self.state / "driver.json", msgspec.json.encode(attempts))


def wait(seconds: float, report: Report) -> None:
    """Calls `report` often, which may raise to interrupt."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        report(Progress())
        time.sleep(TICK_S)
