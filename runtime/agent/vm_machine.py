"""The agent's machine on a cloud: systemd's units, the mailbox, and what makes a bare VM ready.

/run/deployctl/keys.json, status.json    copies for the server, which cannot reach the bucket
/run/deployctl/boot                      a random name of this boot; gone after the next
"""

from __future__ import annotations

import grp
import os
import shutil
import sys
import sysconfig
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from runtime.agent import disk, install, phases
from runtime.agent.audit import Audit
from runtime.agent.courier import Courier
from runtime.agent.driver import ASK_AGAIN_S, Driver, uptime_s, wait
from runtime.agent.files import Access
from runtime.agent.front import INNER_PORT, Front, certificate_error, domains_of
from runtime.agent.host import HostFacts
from runtime.agent.identity import Keeper, read_ssh_host_key, utc_now
from runtime.agent.life import LifeWatch
from runtime.agent.main import Agent, Settings, follow_signals
from runtime.agent.metadata import Metadata, MetadataError
from runtime.agent.packages import install_packages
from runtime.agent.power import stop_instance
from runtime.agent.releases import Release, Releases
from runtime.agent.rounds import Rounds
from runtime.agent.serving import Health, probe_health
from runtime.agent.software import Software, packages_of
from runtime.agent.status import PhaseError, Report
from runtime.agent.systemd import Systemd
from runtime.agent.units import UnitManager
from runtime.agent.uploads import Uploads
from runtime.agent.weights import Caches
from runtime.agent.worker import WorkerError
from runtime.bucket import BucketError, open_bucket
from runtime.deployment import Listen, Setup
from runtime.mailbox import (
    IDENTITY,
    KEYS,
    STATUS,
    TLS_SECRET,
    BucketMailbox,
    Current,
    FolderMailbox,
    Identity,
    Mailbox,
    Status,
    encode_status,
    write_atomic,
)
from runtime.vm import GROUP, RUN_DIR, SERVER_USER, STATE_DIR, Vm, decode_vm

LOOPBACK = "127.0.0.1"
BUCKET_S = 3.0  # between two looks into the bucket, and between two reports of progress to it
FOLDER_S = 0.5  # the same for a folder that its user writes over SSH
METADATA_AGAIN_S = 2.0
LAST_ROUND_S = 5.0  # systemd kills after 10 s
COMPILER = ("gcc", "libc6-dev", "python3-dev")
IMAGE_MOUNTS_WITHIN_S = 180.0  # of the machine's start
SETTINGS = Settings(poll_s=2.0, status_s=1.0, load_s=0.5)  # each look at a unit is a call of systemctl
TLS_OF_SERVER = ("pinned", "own")


def open_socket(address: str, port: int) -> bool:
    return install.open_port(port, address=address)


@dataclass(slots=True)
class VmMachine:
    """`runtime.agent.machine.Machine` on a VM. `open_port(address, port)` renders units and opens the socket."""

    state: Path
    units: UnitManager
    instance_id: str
    access: Access
    mailbox: Mailbox
    metadata: Metadata | HostFacts
    software: Software
    driver: Driver
    keeper: Keeper
    uploads: Uploads
    rounds: Rounds
    front: Front
    switch: Callable[[], None]  # switches this instance off by its cloud's API; raises PowerError
    run_dir: Path = RUN_DIR
    open_port: Callable[[str, int], bool] = open_socket
    run_tool: disk.Run = disk.run_command
    formats_disks: bool = True  # a host's disks are its owner's: weights lie beside the rest
    image_mounts_stores: bool = field(default_factory=disk.image_mounts_stores)
    _weights: Path | None = None
    _driver_version: str | None = None
    _warnings: list[str] = field(default_factory=list)

    @property
    def caches(self) -> Caches:
        root = self._weights or self.state
        return Caches(models=root / "models", hub=root / "hub")

    def prepare_python(self, wanted: Current, release: Release, report: Report) -> None:
        self.software.install(wanted, release, report)
        if release.deployment.listen.tls == "acme":
            self.front.install((release.deployment.setup or Setup()).proxy, report)

    def prepare_disk(self, release: Release, need_bytes: Callable[[Caches], int], report: Report) -> None:
        setup = release.deployment.setup or Setup()
        choice = disk.choose(
            self._blocks(setup, report),
            weights_disk=setup.weights_disk,
            need_bytes=need_bytes(self.caches),
            format_stores=not self.image_mounts_stores,
        )
        found = disk.make_ready(choice, self.state / "disk", self.run_tool)
        self._weights = None if found is None else found / "deployctl"
        for folder in (self.caches.models, self.caches.hub):
            self.access.make_folder(folder)
        phases.check_disk(self.caches.models, need_bytes(self.caches))

    def prepare_driver(self, release: Release, report: Report) -> None:
        self._driver_version = self.driver.prepare(release, report)

    def prepare_runtime(self, wanted: Current, release: Release, report: Report) -> None:
        self.software.add_runtime(wanted, release, report, self._driver_version)
        if release.deployment.engine.device == "cuda":
            # An own index or bundle may have brought any build: only now it is known what it needs.
            built_for = phases.cuda_build(packages_of((release.folder / "venv").resolve()))
            phases.check_gpus(phases.list_gpus(), release.deployment.engine.tensor_parallel, built_for)
            self._ensure_compiler(release, report)

    def resume(self, release: Release, need_bytes: Callable[[Caches], int], report: Report) -> bool:
        self.prepare_disk(release, need_bytes, report)
        self.prepare_driver(release, report)
        return release.weights() is not None and need_bytes(self.caches) == 0

    def overtake(self, wanted: Current, why: str, report: Report) -> None:
        self.software.overtake(wanted, why, report)

    def packages(self, release: Release) -> list[str] | None:
        return packages_of((release.folder / "venv").resolve())

    def open(self, release: Release) -> bool:
        listen = release.deployment.listen
        changed = self._ensure_certificate(listen)
        try:
            changed = self._open_port(listen) or changed
        except install.InstallError as error:
            raise PhaseError(f"port {listen.port}: {error}", error.hint) from error
        identity = Identity(
            instance_id=self.instance_id,
            ssh_host_key=read_ssh_host_key(),
            certificate=self.keeper.certificate() if listen.tls in TLS_OF_SERVER else None,
        )
        self.mailbox.put(IDENTITY, msgspec.json.encode(identity))
        return changed

    def probe(self, release: Release) -> Health | None:
        listen = release.deployment.listen
        if listen.tls != "acme":
            certificate = self.keeper.leaf() if listen.tls in TLS_OF_SERVER else None
            return probe_health(LOOPBACK, listen.port, certificate)
        health = probe_health(LOOPBACK, INNER_PORT)
        if health is None or not health.ready:
            return health
        error = certificate_error(domains_of(listen.names)[0], listen.port)
        return health if error is None else Health(phase="serve", error=error)

    def warning(self) -> str | None:
        return "; ".join(self._warnings) or None

    def note_failure(self) -> None:
        self.uploads.hurry()
        self.rounds.wake()

    def switch_off(self) -> None:
        self.rounds.go_once()  # the last words
        self.switch()

    def settle(self, release: Release) -> bool:
        moved = self.software.adopt(release)
        before = Releases(self.state, self.access).last_proven(besides=release.id)
        self.software.prune((release,) if before is None else (release, before))
        return moved

    def _open_port(self, listen: Listen) -> bool:
        """Whoever had the port before gives it back first."""
        if listen.tls == "acme":
            changed = self.open_port(LOOPBACK, INNER_PORT)
            self.front.open(domains_of(listen.names), listen.port)
            return changed
        self.front.close()
        return self.open_port(install.ANY_ADDRESS, listen.port)

    def _blocks(self, setup: Setup, report: Report) -> list[disk.Block]:
        """Waits, soon after boot only, for an image that mounts instance stores itself."""
        if not self.formats_disks:
            return []
        while True:
            listed = self.run_tool(disk.lsblk_argv())
            if listed.code != 0 and setup.weights_disk:
                raise PhaseError(f"lsblk: {listed.text.strip()}", "see `deployctl logs agent`")
            if listed.code != 0:
                return []
            blocks = disk.parse_lsblk(listed.text)
            late = self.image_mounts_stores and disk.has_idle_store(blocks) and uptime_s() < IMAGE_MOUNTS_WITHIN_S
            if not late:
                return blocks
            wait(ASK_AGAIN_S, report)

    def _ensure_certificate(self, listen: Listen) -> bool:
        if listen.tls == "own":
            return self.keeper.ensure_own(self.mailbox.get(TLS_SECRET), utc_now())
        if listen.tls != "pinned":
            return False
        try:
            addresses = self.metadata.addresses()
        except MetadataError as error:
            raise PhaseError(f"the machine's addresses: {error}", "it is tried again by itself") from error
        names = tuple(dict.fromkeys((*listen.names, *addresses, LOOPBACK)))
        return self.keeper.ensure_pinned(self.instance_id, names, utc_now())

    def _ensure_compiler(self, release: Release, report: Report) -> None:
        """Triton compiles at run time. Without a compiler the model may still serve, so this is no error, and is tried
        once for each release."""
        self._warnings = []
        if has_compiler():
            return
        setup = release.deployment.setup or Setup()
        tried = release.folder / "compiler"
        if setup.egress not in ("bundle", "none") and not tried.exists():
            self.access.write(tried, b"")
            try:
                install_packages(COMPILER, self.state / "apt.log", setup.proxy, report)
            except WorkerError as error:
                print(f"apt-get: {error.error}", file=sys.stderr, flush=True)
        if not has_compiler():
            self._warnings = ["gcc or Python.h is missing: GPU kernels cannot be compiled; install gcc and python3-dev"]


def has_compiler() -> bool:
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return shutil.which("gcc") is not None and headers.exists()


def boot_id(run_dir: Path, on_new: Callable[[], None]) -> str:
    """A name for this boot of the machine; `on_new` is called at its first use. (The kernel's own boot_id is the
    host's inside a container.)"""
    path = run_dir / "boot"
    try:
        return path.read_text()
    except FileNotFoundError:
        on_new()
        name = uuid.uuid4().hex
        write_atomic(path, name.encode())
        return name


def wait_for_instance_id(metadata: Metadata | HostFacts) -> str:
    said = False
    while True:
        try:
            return metadata.instance_id()
        except MetadataError as error:
            if not said:
                print(f"{error}; waiting for it", file=sys.stderr, flush=True)
            said = True
            time.sleep(METADATA_AGAIN_S)


def open_mailbox(vm: Vm) -> Mailbox:
    """Raises BucketError, ValueError."""
    if vm.spool is not None:
        return FolderMailbox(Path(vm.spool))
    if vm.provider == "host":
        raise ValueError("a host has no bucket: `spool` is missing")
    return BucketMailbox(open_bucket(vm.provider, vm.region, vm.bucket, vm.endpoint))


def run(vm_file: Path) -> int:
    """The agent of a VM. Runs until SIGTERM or SIGINT, or until it must start again from another environment."""
    try:
        vm = decode_vm(vm_file.read_bytes())
        group, server_group = (grp.getgrnam(name).gr_gid for name in (GROUP, SERVER_USER))
        remote = open_mailbox(vm)
    except (OSError, ValueError, KeyError, BucketError) as error:
        print(f"error: {vm_file}: {error} | hint: run `deployctl-runtime install` first", file=sys.stderr)
        return 1
    os.umask(0o022)
    access = Access(0o640, 0o750, gid=group)
    metadata = HostFacts(vm) if vm.provider == "host" else Metadata(vm.provider)
    instance_id = wait_for_instance_id(metadata)
    mirrors = {KEYS: RUN_DIR / "keys.json", STATUS: RUN_DIR / "status.json"}
    courier = Courier(remote, STATE_DIR / "mailbox", mirrors, access)
    boot = boot_id(RUN_DIR, Releases(STATE_DIR, access).forgive)
    uploads = Uploads(courier)

    def last_words() -> None:
        status = Status(instance_id=instance_id, release="", phase="stopped", updated_at=time.time())
        courier.put(STATUS, encode_status(status))
        courier.sync()

    # A host's power is its owner's matter.
    life = () if vm.provider == "host" else (LifeWatch(courier, last_words).check,)
    steps = (*life, uploads.upload, courier.sync, Audit(courier, STATE_DIR, access).check)
    rounds = Rounds(steps, FOLDER_S if vm.provider == "host" else BUCKET_S)
    machine = VmMachine(
        state=STATE_DIR,
        units=Systemd(),
        instance_id=instance_id,
        access=access,
        mailbox=courier,
        metadata=metadata,
        software=Software(STATE_DIR, vm.provider, courier, access, boot),
        driver=Driver(vm.provider, STATE_DIR, metadata, boot),
        keeper=Keeper(STATE_DIR / "tls", Access(0o640, 0o750, gid=server_group)),
        uploads=uploads,
        rounds=rounds,
        front=Front(STATE_DIR),
        switch=lambda: stop_instance(vm, instance_id),
        formats_disks=vm.provider != "host",
    )
    rounds.start()
    try:
        return follow_signals(Agent(machine, courier, SETTINGS))
    finally:
        rounds.end(LAST_ROUND_S)
        uploads.hurry()
        rounds.go_once()
