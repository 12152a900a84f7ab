"""Which disk gets the weights, by listings in lsblk's own form, and that a disk with data is never written to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runtime.agent import disk
from runtime.agent.disk import Block, Choice, Output
from runtime.agent.status import PhaseError

CASES = Path(__file__).with_name("lsblk")
GIB = 2**30


def listing(case: str) -> list[Block]:
    return disk.parse_lsblk((CASES / f"{case}.json").read_text(), exists=lambda _: True)


@dataclass
class Tools:
    """Answers by the name of the tool, and what was run."""

    answers: dict[str, Output] = field(default_factory=dict)
    ran: list[tuple[str, ...]] = field(default_factory=list)

    def run(self, argv: tuple[str, ...]) -> Output:
        self.ran.append(argv)
        return self.answers.get(argv[0], Output(0, ""))

    @property
    def names(self) -> list[str]:
        return [argv[0] for argv in self.ran]


@pytest.mark.parametrize(
    ("case", "choice"),
    [
        ("ec2_g6_blank_store", Choice("format", "/dev/nvme1n1", label="deployctl-nvme")),
        ("ec2_g6_our_store", Choice("mount", "/dev/nvme1n1")),
        ("ec2_g6_our_store_mounted", Choice("mounted", "/dev/nvme1n1", "/var/lib/deployctl/disk")),
        ("dlami_g5", Choice("mounted", "/dev/mapper/vg.01-lv_ephemeral", "/opt/dlami/nvme")),
        ("ec2_no_store", Choice("system")),
        ("ec2_weights_disk_blank", Choice("format", "/dev/nvme2n1", label="deployctl-nvme")),
        ("ec2_weights_disk_foreign", Choice("system")),
        ("alicloud_virtio", Choice("system")),
        ("alicloud_virtio_weights_disk", Choice("system")),
        ("container_with_zram", Choice("system")),
    ],
)
def test_without_a_weights_disk_an_instance_store_is_used_where_there_is_one(case: str, choice: Choice) -> None:
    assert disk.choose(listing(case), weights_disk=False, need_bytes=100 * GIB) == choice


@pytest.mark.parametrize(
    ("case", "choice"),
    [
        ("ec2_weights_disk_blank", Choice("format", "/dev/nvme1n1", label="deployctl-disk")),
        ("ec2_weights_disk_ours", Choice("mount", "/dev/nvme2n1")),
        ("alicloud_virtio_weights_disk", Choice("format", "/dev/vdb", label="deployctl-disk")),
        ("alicloud_nvme_weights_disk", Choice("format", "/dev/nvme1n1", label="deployctl-disk")),
    ],
)
def test_a_weights_disk_is_found_by_our_label_or_by_being_blank(case: str, choice: Choice) -> None:
    assert disk.choose(listing(case), weights_disk=True, need_bytes=0) == choice


@pytest.mark.parametrize(
    ("case", "named"),
    [
        ("ec2_weights_disk_foreign", "/dev/nvme1n1"),
        ("ec2_weights_disk_partitioned", "/dev/nvme1n1"),
        ("ec2_g6_blank_store", "none"),
        ("container_with_zram", "none"),
    ],
)
def test_a_weights_disk_with_data_or_not_there_yet_is_an_error_that_may_heal(case: str, named: str) -> None:
    with pytest.raises(PhaseError, match=f"unused disks: {named}") as caught:
        disk.choose(listing(case), weights_disk=True, need_bytes=0)
    assert caught.value.retry
    assert "never formatted" in caught.value.hint


def test_an_instance_store_that_is_too_small_is_left_alone() -> None:
    assert disk.choose(listing("ec2_g6_blank_store"), weights_disk=False, need_bytes=300 * GIB) == Choice("system")


def test_where_the_image_mounts_instance_stores_itself_none_is_formatted() -> None:
    blocks = listing("dlami_g6_before_its_service")
    assert disk.has_idle_store(blocks)
    assert disk.choose(blocks, weights_disk=False, need_bytes=0, format_stores=False) == Choice("system")
    assert not disk.has_idle_store(listing("dlami_g5"))


def test_disks_without_a_device_file_do_not_count() -> None:
    text = (CASES / "ec2_g6_blank_store.json").read_text()
    assert disk.parse_lsblk(text, exists=lambda name: name != "/dev/nvme1n1")[-1].name == "/dev/nvme0n1"


def test_the_commands() -> None:
    columns = "NAME,TYPE,SIZE,RO,MODEL,FSTYPE,LABEL,PTTYPE,MOUNTPOINTS"
    assert disk.lsblk_argv() == ("lsblk", "--json", "--bytes", "--paths", "--output", columns)
    assert disk.wipefs_argv("/dev/vdb") == ("wipefs", "--no-act", "--noheadings", "/dev/vdb")
    assert disk.blkid_argv("/dev/vdb") == ("blkid", "--probe", "/dev/vdb")
    assert disk.mkfs_argv("/dev/vdb", "deployctl-disk") == (
        "mkfs.ext4",
        "-q",
        "-m",
        "0",
        "-L",
        "deployctl-disk",
        "/dev/vdb",
    )
    assert disk.mount_argv("/dev/vdb", Path("/d")) == (
        "systemd-mount",
        "--no-ask-password",
        "--collect",
        "--type=ext4",
        "--options=noatime,nodev,nosuid,noexec",
        "/dev/vdb",
        "/d",
    )


def test_a_blank_disk_is_proved_blank_formatted_and_mounted(tmp_path: Path) -> None:
    tools = Tools({"blkid": Output(2, "")})
    assert disk.make_ready(Choice("format", "/dev/vdb", label="x"), tmp_path / "disk", tools.run) == tmp_path / "disk"
    assert tools.names == ["wipefs", "blkid", "mkfs.ext4", "systemd-mount"]


@pytest.mark.parametrize(
    "answers",
    [
        {"wipefs": Output(0, "0x438 ext4"), "blkid": Output(2, "")},
        {"wipefs": Output(0, ""), "blkid": Output(0, '/dev/vdb: TYPE="ext4"')},
        {"wipefs": Output(1, "probing initialization failed"), "blkid": Output(2, "")},
        {"wipefs": Output(127, "not found"), "blkid": Output(127, "not found")},
    ],
    ids=["wipefs sees it", "blkid sees it", "wipefs fails", "no tools"],
)
def test_a_disk_that_is_not_proved_blank_is_not_touched(tmp_path: Path, answers: dict[str, Output]) -> None:
    tools = Tools(answers)
    with pytest.raises(PhaseError, match="cannot be proved blank; it was not touched"):
        disk.make_ready(Choice("format", "/dev/vdb", label="x"), tmp_path / "disk", tools.run)
    assert tools.names == ["wipefs", "blkid"]


def test_our_disk_is_mounted_without_being_formatted_again(tmp_path: Path) -> None:
    tools = Tools()
    disk.make_ready(Choice("mount", "/dev/vdb"), tmp_path / "disk", tools.run)
    assert tools.names == ["systemd-mount"]


def test_what_is_mounted_needs_no_command(tmp_path: Path) -> None:
    tools = Tools()
    assert disk.make_ready(Choice("mounted", "/dev/vdb", str(tmp_path)), tmp_path / "disk", tools.run) == tmp_path
    assert disk.make_ready(Choice("system"), tmp_path / "disk", tools.run) is None
    assert tools.ran == []


def test_the_real_tools_tell_a_blank_disk_from_one_that_mkfs_has_written(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    with open(image, "wb") as file:
        file.truncate(64 * 2**20)

    def blank() -> bool:
        return disk.is_blank(
            disk.run_command(disk.wipefs_argv(str(image))), disk.run_command(disk.blkid_argv(str(image)))
        )

    assert blank()
    assert disk.run_command(disk.mkfs_argv(str(image), disk.WEIGHTS_LABEL)).code == 0
    assert not blank()


def test_the_real_lsblk_of_this_machine_can_be_read() -> None:
    listed = disk.run_command(disk.lsblk_argv())
    assert listed.code == 0, listed.text
    assert all(block.name.startswith("/dev/") for block in disk.parse_lsblk(listed.text))
