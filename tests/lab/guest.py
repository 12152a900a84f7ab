"""A "VM" on this machine: a Debian root filesystem under systemd-nspawn with real systemd as PID 1 and real cloud-init.

rootfs (cache, shared) ─┐
                        ├─ overlay ─ systemd-nspawn ─ systemd ─ cloud-init ◄─ metadata service of the operator's side
changes (tmpfs, own)  ──┘
What it is not: the kernel, the page cache and the clock are this machine's; there is no udev, no module, no disk and no
GPU. So `cut` is what the death of a VM's processes leaves on its disk, not what a lost write cache leaves.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from runtime.vm import Provider
from tests.lab import rootfs
from tests.lab.network import GUEST, OPERATOR, Network
from tests.lab.rootfs import DMI_FOLDER, Suite

BOOT_S = 60.0
STOP_S = 30.0
HALT = signal.SIGRTMIN + 4  # systemd: power off
# Reads until the test process is gone or ends it, then kills PID 1 of a guest that still is in its own network.
WATCH = 'read -r _; [ "$(readlink /proc/$1/ns/net 2>/dev/null)" = "$2" ] && kill -KILL $1'
REBOOTING = 133  # nspawn's exit status for a guest that restarts itself
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
CLOUD_CONFIG: dict[Provider, str] = {
    "aws": "datasource_list: [ Ec2 ]\n"
    "datasource: {Ec2: {max_wait: 30, timeout: 3, apply_full_imds_network_config: false}}\n",
    "alicloud": "datasource_list: [ AliYun ]\ndatasource: {AliYun: {max_wait: 30, timeout: 3}}\n",
}
T = TypeVar("T")


def require_lab() -> None:
    """Skips the test where no guest can run, with the reason; on CI that is a failure."""
    reason = _obstacle()
    if reason is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"the lab must run on CI, but {reason}")
    pytest.skip(f"the lab needs root on Debian: {reason}")


def _obstacle() -> str | None:
    if sys.platform != "linux" or not Path("/etc/debian_version").exists():
        return "this is not Debian"
    if os.geteuid() != 0:
        return "this user is not root"
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    missing += [] if rootfs.KEYRING.exists() else ["debian-archive-keyring"]
    if missing:
        return f"tools are missing: apt-get install -y {' '.join(missing)}"
    trial = subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, text=True, check=False)
    return None if trial.returncode == 0 else f"this root may not make namespaces: {trial.stderr.strip()}"


@dataclass(slots=True)
class Guest:
    """One guest. `boot` may follow `stop` and `cut`: its disk stays."""

    name: str
    network: Network
    folder: Path  # mount points and console.log, on this machine
    nspawn: subprocess.Popen[bytes] | None = None
    watch: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> Path:
        """The guest's disk, as this machine reaches it, while it runs or not. `/run` is not on a disk."""
        return Path(f"/proc/{self.network.guest.pid}/root{self.folder}/root")

    @property
    def console(self) -> str:
        path = self.folder / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def is_running(self) -> bool:
        return self.nspawn is not None and self.nspawn.poll() is None

    @property
    def leader(self) -> int | None:
        """The guest's PID 1, as this machine numbers it."""
        if not self.is_running:
            return None
        assert self.nspawn is not None
        for task in Path(f"/proc/{self.nspawn.pid}/task").glob("*/children"):
            for child in task.read_text().split():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    status = Path(f"/proc/{child}/status").read_text()
                    numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
                    if len(numbers) > 2 and numbers[-1] == "1":
                        return int(child)
        return None

    def boot(self) -> None:
        """Starts PID 1, and returns once commands can run. Raises RuntimeError with the console's end."""
        groups = [str(group / self.name) for group in _cgroup_roots()]
        for group in groups:
            Path(group).mkdir(exist_ok=True)
        enter = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups)
        nspawn = [
            "systemd-nspawn",
            "--quiet",
            "--register=no",
            "--keep-unit",
            f"--machine={self.name}",
            f"--directory={self.folder}/root",
            f"--network-namespace-path=/proc/{self.network.guest.pid}/ns/net",
            "--resolv-conf=off",
            "--timezone=off",
            "--link-journal=no",
            "--capability=CAP_BPF,CAP_NET_ADMIN",  # as a VM's root; IPAddressDeny of units is held by a BPF program
            "--system-call-filter=bpf",
            "--console=read-only",
            "--boot",
        ]
        with (self.folder / "console.log").open("ab") as console:
            self.nspawn = subprocess.Popen(
                [
                    "setpriv",
                    "--pdeathsig",
                    "KILL",
                    *self.network.guest.nsenter("sh", "-c", enter + 'exec "$@"', "sh", *nspawn),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            )
        leader = self.wait_for("PID 1", lambda: self.leader, BOOT_S)
        # nspawn's death does not end its guest.
        place = os.readlink(f"/proc/{leader}/ns/net")
        self._end_watch()
        argv = ["sh", "-c", WATCH, "watch", str(leader), place]
        self.watch = subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True)
        self.wait_for("systemd", lambda: self.succeeds("systemctl", "show", "--property=Version"), BOOT_S)

    def follow_reboot(self) -> None:
        """Starts a guest that has restarted itself, as a hypervisor does. Safe to call at any time."""
        if self.nspawn is not None and self.nspawn.poll() == REBOOTING:
            self.boot()

    def cut(self) -> None:
        """Power cut: every process of the guest is gone at once. One that is restarting itself is off anyway."""
        with contextlib.suppress(ProcessLookupError):
            if (leader := self.leader) is not None:
                os.kill(leader, signal.SIGKILL)
        self._reap()

    def stop(self) -> None:
        """Orderly shutdown; a guest that does not end by itself is cut and reported. Safe to repeat."""
        if not self.is_running:
            return
        os.kill(self._require_leader(), HALT)
        try:
            self._reap()
        except subprocess.TimeoutExpired:
            self.cut()
            raise RuntimeError(f"the guest did not stop within {STOP_S:g} s:\n{self.console[-2000:]}") from None

    def run(self, *argv: str, code: int | None = 0, stdin: str = "", timeout_s: float = 60.0) -> str:
        """stdout of a command in the guest. Fails when it does not end with `code` (None: any)."""
        done = subprocess.run(
            self.command(*argv), input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        said = f"{' '.join(argv)} ended with {done.returncode} in the guest\n{done.stdout}\n{done.stderr}"
        assert code is None or done.returncode == code, said
        return done.stdout

    def succeeds(self, *argv: str) -> bool | None:
        """True or None, for `wait_for`: whether a command in the guest ends with 0."""
        return subprocess.run(self.command(*argv), capture_output=True, check=False).returncode == 0 or None

    def command(self, *argv: str) -> list[str]:
        """A command line of this machine that runs `argv` in the guest, as root."""
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        inside = ["nsenter", "-t", str(self._require_leader()), "-m", "-u", "-i", "-n", "-p", "-C", "--"]
        return [*inside, "env", "-i", path, "HOME=/root", "LC_ALL=C.UTF-8", *argv]

    def resize_disk(self, size: str) -> None:
        """`size` as mount(8) takes it for tmpfs: "2g"."""
        remount = ["mount", "-o", f"remount,size={size}", str(self.folder / "disk")]
        subprocess.run(self.network.guest.nsenter(*remount), check=True)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def read(self, path: str) -> str:
        return (self.root / path.lstrip("/")).read_text()

    def journal(self, *arguments: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=short-monotonic", *arguments)

    def wait_for(self, what: str, look: Callable[[], T | None], timeout_s: float) -> T:
        """Polls until `look` gives something that is not None; fails at once when the guest ends. A guest that restarts
        itself is started again."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.follow_reboot()
            if not self.is_running:
                raise RuntimeError(f"the guest ended while waiting for {what}:\n{self.console[-2000:]}")
            found = look()
            if found is not None:
                return found
            time.sleep(0.05)
        raise RuntimeError(f"not within {timeout_s:g} s: {what}\n{self.console[-2000:]}")

    def close(self) -> None:
        """Ends what was started and removes what was made on this machine. Safe to repeat."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError, RuntimeError):
                os.kill(self._require_leader(), signal.SIGKILL)
            try:
                self._reap()
            except subprocess.TimeoutExpired:
                assert self.nspawn is not None
                self.nspawn.kill()
                self.nspawn.wait()
        self._end_watch()
        for root in _cgroup_roots():
            _remove_cgroup(root / self.name)

    def _end_watch(self) -> None:
        if self.watch is not None:
            self.watch.communicate()
            self.watch = None

    def _reap(self) -> None:
        assert self.nspawn is not None
        self.nspawn.wait(STOP_S)

    def _require_leader(self) -> int:
        leader = self.leader
        if leader is None:
            raise RuntimeError(f"guest {self.name} does not run:\n{self.console[-2000:]}")
        return leader


@contextmanager
def make_guest(
    suite: Suite, provider: Provider, network: Network, folder: Path, *, disk: str = "2g"
) -> Iterator[Guest]:
    """A guest that has not booted yet. `disk`: size of what it may change, kept in memory. `folder` must be empty."""
    base = rootfs.rootfs(suite)
    guest = Guest(f"dl{uuid.uuid4().hex[:10]}", network, folder)
    disk_folder, root = folder / "disk", folder / "root"
    disk_folder.mkdir()
    root.mkdir()
    layers = f"lowerdir={base},upperdir={disk_folder}/changes,workdir={disk_folder}/work"
    mount = (
        f"mount -t tmpfs -o size={disk},mode=755 tmpfs {disk_folder} && mkdir {disk_folder}/changes {disk_folder}/work"
        f" && mount -t overlay -o {layers} overlay {root}"
    )
    subprocess.run(network.guest.nsenter("sh", "-c", mount), check=True)
    _write_machine(guest, provider)
    try:
        yield guest
    finally:
        guest.close()


def _write_machine(guest: Guest, provider: Provider) -> None:
    """What the machine itself is, before any user-data: its firmware's strings and its image's cloud-init settings."""
    serial = f"ec2{uuid.uuid4()!s}"[:36]
    vendor, product = ("Amazon EC2", "g6.2xlarge") if provider == "aws" else ("Alibaba Cloud", "Alibaba Cloud ECS")
    for name, value in (
        ("sys_vendor", vendor),
        ("product_name", product),
        ("product_uuid", serial),
        ("product_serial", serial),
    ):
        guest.write(f"{DMI_FOLDER}/{name}", value + "\n")
    common = "network: {config: disabled}\nlocale: C.UTF-8\n"
    guest.write("/etc/cloud/cloud.cfg.d/99-lab.cfg", common + CLOUD_CONFIG[provider])
    guest.write("/etc/hosts", f"127.0.0.1 localhost\n{GUEST} lab-guest\n{OPERATOR} operator\n")
    guest.write("/etc/resolv.conf", "")


def _cgroup_roots() -> list[Path]:
    """Where a guest gets its own groups: both trees of a hybrid machine, or the one of a unified machine."""
    hybrid = [path for name in ("systemd", "unified") if (path := Path("/sys/fs/cgroup") / name).is_dir()]
    return hybrid or [Path("/sys/fs/cgroup")]


def _remove_cgroup(group: Path) -> None:
    for folder, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
