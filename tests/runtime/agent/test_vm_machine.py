"""What makes a VM ready, part by part: disk, certificate and identity, compiler, boots."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest
from agent_machine import a_deployment
from cryptography import x509

from runtime.agent import install, vm_machine
from runtime.agent.control import SupervisorClient
from runtime.agent.disk import Output
from runtime.agent.driver import Driver
from runtime.agent.files import PRIVATE
from runtime.agent.front import INNER_PORT, Front
from runtime.agent.identity import Keeper
from runtime.agent.metadata import Metadata, MetadataError
from runtime.agent.releases import Release
from runtime.agent.rounds import Rounds
from runtime.agent.software import Software
from runtime.agent.status import PhaseError, Progress
from runtime.agent.uploads import Uploads
from runtime.agent.vm_machine import VmMachine, boot_id
from runtime.agent.weights import Caches
from runtime.agent.worker import WorkerError
from runtime.deployment import Listen, Setup
from runtime.mailbox import IDENTITY, FolderMailbox, Identity, decode_identity

PUBLIC, PRIVATE_IP = "203.0.113.7", "10.0.0.4"


@dataclass(frozen=True, slots=True)
class Addresses(Metadata):
    """The metadata service's answer; None = it does not answer."""

    found: tuple[str, ...] | None = (PRIVATE_IP,)

    def addresses(self) -> tuple[str, ...]:
        if self.found is None:
            raise MetadataError("the metadata service does not answer")
        return self.found


@dataclass
class Tools:
    """`lsblk` shows the disks; every other tool works, and finds nothing on a disk."""

    blocks: list[dict[str, object]] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)

    def run(self, argv: tuple[str, ...]) -> Output:
        self.ran.append(argv[0])
        if argv[0] == "lsblk":
            return Output(0, json.dumps({"blockdevices": self.blocks}))
        return Output(2 if argv[0] == "blkid" else 0, "")


def quiet(_: Progress) -> None:
    return None


def release_with(listen: Listen | None = None, setup: Setup | None = None, device: str = "cpu") -> Release:
    deployment = a_deployment("r1", "demo", device=device)
    deployment = msgspec.structs.replace(
        deployment, listen=listen or Listen(tls="pinned", names=(PUBLIC,)), setup=setup
    )
    return Release("r1", Path("/nowhere"), deployment)


@pytest.fixture
def tools() -> Tools:
    return Tools()


@pytest.fixture
def machine(tmp_path: Path, tools: Tools) -> VmMachine:
    mailbox = FolderMailbox(tmp_path / "mailbox")
    metadata = Addresses("aws")
    return VmMachine(
        state=tmp_path,
        units=SupervisorClient(tmp_path),
        instance_id="i-1",
        access=PRIVATE,
        mailbox=mailbox,
        metadata=metadata,
        software=Software(tmp_path, "aws", mailbox, PRIVATE, "boot"),
        driver=Driver("aws", tmp_path, metadata, "boot"),
        keeper=Keeper(tmp_path / "tls", PRIVATE),
        uploads=Uploads(mailbox, lambda _: b""),
        rounds=Rounds((), 60.0),
        front=Front(tmp_path, lambda _: "", tmp_path / "Caddyfile"),
        switch=lambda: None,
        open_port=lambda address, port: False,
        run_tool=tools.run,
        image_mounts_stores=False,
    )


def identity_of(machine: VmMachine) -> Identity:
    data = machine.mailbox.get(IDENTITY)
    assert data is not None
    return decode_identity(data)


def test_the_certificate_in_the_mailbox_is_the_one_on_the_disk_and_names_all_addresses(machine: VmMachine) -> None:
    assert machine.open(release_with())
    certificate = identity_of(machine).certificate
    assert certificate == machine.keeper.certificate()
    assert certificate is not None
    san = x509.load_pem_x509_certificate(certificate.encode()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert {str(name.value) for name in san.value} == {PUBLIC, PRIVATE_IP, "127.0.0.1"}


def test_opened_again_nothing_changes_and_the_server_may_run_on(machine: VmMachine) -> None:
    machine.open(release_with())
    before = identity_of(machine)
    assert not machine.open(release_with())
    assert identity_of(machine) == before


def test_units_that_have_changed_restart_the_server(machine: VmMachine) -> None:
    machine.open(release_with())
    machine.open_port = lambda address, port: True
    assert machine.open(release_with())


def test_without_tls_the_identity_has_no_certificate(machine: VmMachine) -> None:
    machine.open(release_with(Listen(tls="off")))
    assert identity_of(machine).certificate is None


def test_addresses_that_are_not_known_yet_are_an_error_that_heals(machine: VmMachine) -> None:
    machine.metadata = Addresses("aws", found=None)
    with pytest.raises(PhaseError, match="addresses") as caught:
        machine.open(release_with())
    assert caught.value.retry


def test_units_that_cannot_be_made_are_an_error_of_the_phase(machine: VmMachine) -> None:
    def fail(address: str, port: int) -> bool:
        raise install.InstallError("systemctl start deployctl.socket: address in use", "stop what has the port")

    machine.open_port = fail
    with pytest.raises(PhaseError, match="port 8000: systemctl") as caught:
        machine.open(release_with())
    assert caught.value.hint == "stop what has the port"


def test_weights_go_to_the_disk_that_was_made_ready(machine: VmMachine, tools: Tools, tmp_path: Path) -> None:
    device = tmp_path / "vdb"
    device.touch()
    tools.blocks = [{"name": str(device), "type": "disk", "size": 2**40}]
    machine.prepare_disk(release_with(setup=Setup(weights_disk=True)), lambda _: 0, quiet)
    assert tools.ran == ["lsblk", "wipefs", "blkid", "mkfs.ext4", "systemd-mount"]
    assert machine.caches == Caches(models=tmp_path / "disk/deployctl/models", hub=tmp_path / "disk/deployctl/hub")
    assert machine.caches.models.is_dir()


def test_without_another_disk_they_stay_on_the_systems(machine: VmMachine, tmp_path: Path) -> None:
    machine.prepare_disk(release_with(), lambda _: 0, quiet)
    assert machine.caches.models == tmp_path / "models"


def test_a_disk_that_is_too_small_is_told_in_bytes(machine: VmMachine) -> None:
    need = shutil.disk_usage("/").total * 2
    with pytest.raises(PhaseError, match=f"disk full: {need + 512 * 2**20} bytes"):
        machine.prepare_disk(release_with(), lambda _: need, quiet)


def test_a_missing_compiler_is_a_hint_and_no_error(machine: VmMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm_machine, "has_compiler", lambda: False)
    machine._ensure_compiler(release_with(setup=Setup(egress="bundle")), quiet)
    assert "install gcc and python3-dev" in (machine.warning() or "")


def test_a_compiler_that_apt_does_not_have_is_asked_for_once_per_release(
    machine: VmMachine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, ...]] = []

    def refuse(names: tuple[str, ...], *_: object) -> None:
        asked.append(names)
        raise WorkerError("exit code 100: E: Package 'python3-dev' has no installation candidate")

    monkeypatch.setattr(vm_machine, "has_compiler", lambda: False)
    monkeypatch.setattr(vm_machine, "install_packages", refuse)
    release = replace(release_with(), folder=tmp_path / "r1")
    for _ in range(2):
        machine._ensure_compiler(release, quiet)
        assert "install gcc and python3-dev" in (machine.warning() or "")
    assert asked == [("gcc", "libc6-dev", "python3-dev")]


def test_with_acme_the_server_listens_on_loopback_and_caddy_on_the_port(machine: VmMachine) -> None:
    opened: list[tuple[str, int]] = []
    machine.open_port = lambda address, port: bool(opened.append((address, port)))
    machine.open(release_with(Listen(tls="acme", names=(PUBLIC, "llm.example.org"))))
    assert opened == [("127.0.0.1", INNER_PORT)]
    assert "https_port 8000" in machine.front.config.read_text()
    assert identity_of(machine).certificate is None
    machine.open(release_with())
    assert opened[-1] == ("0.0.0.0", 8000)
    assert not machine.front.config.exists()


def test_acme_without_a_domain_is_refused(machine: VmMachine) -> None:
    with pytest.raises(PhaseError, match="no domain") as caught:
        machine.open(release_with(Listen(tls="acme", names=(PUBLIC,))))
    assert not caught.value.retry


def test_each_boot_has_a_name_and_begins_once(tmp_path: Path) -> None:
    begun: list[int] = []
    first = boot_id(tmp_path, lambda: begun.append(1))
    assert boot_id(tmp_path, lambda: begun.append(1)) == first
    (tmp_path / "boot").unlink()
    assert boot_id(tmp_path, lambda: begun.append(1)) != first
    assert len(begun) == 2
