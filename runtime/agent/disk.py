"""Phase `disk` on a VM: which disk holds the weights. A disk with anything on it is never written to.

In this order, by what lsblk shows:

    weights disk asked for   the disk with our label ► a blank one, formatted ► error: not attached, or not blank
    instance store           our label ► what the image has mounted (DLAMI) ► a blank one that is large enough
    else                     the system disk

Nothing is written to fstab: the phase runs after every boot, before the engine starts.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from runtime.agent.status import PhaseError

# ext4 labels have at most 16 bytes.
WEIGHTS_LABEL = "deployctl-disk"
STORE_LABEL = "deployctl-nvme"
INSTANCE_STORE = "Instance Storage"  # model "Amazon EC2 NVMe Instance Storage"; EBS is "Amazon Elastic Block Store"
USABLE = 0.95  # of a disk's size, after ext4's own structures
SMALLEST = 2**30  # bytes; what is smaller is no disk for weights (an idle zram device, for example)
# AWS's Deep Learning AMIs make one volume of all instance stores at boot: formatting one would come in its way.
IMAGE_FOLDERS = (Path("/opt/dlami"), Path("/opt/aws/dlami"))
TOOL_TIMEOUT_S = 600.0  # mkfs writes little: inode tables are initialised later, by the kernel

Kind = Literal["system", "mounted", "mount", "format"]


class Block(msgspec.Struct, frozen=True):
    """One device of lsblk's tree; `children` are its partitions and the volumes on it."""

    name: str
    type: str
    size: int
    ro: bool = False
    model: str | None = None
    fstype: str | None = None
    label: str | None = None
    pttype: str | None = None
    mountpoints: list[str | None] = []
    children: list[Block] = []

    @property
    def mounted_at(self) -> str | None:
        return next((path for path in self.mountpoints if path is not None and path.startswith("/")), None)

    @property
    def looks_blank(self) -> bool:
        """As far as udev knows; `is_blank` asks the disk itself."""
        return not (self.fstype or self.label or self.pttype or self.children or any(self.mountpoints))


class _Listing(msgspec.Struct, frozen=True):
    blockdevices: list[Block]


@dataclass(frozen=True, slots=True)
class Choice:
    """`system`: nothing to do. `mounted`: use `path`. `mount`: mount `device`. `format`: make a file system first."""

    kind: Kind
    device: str = ""
    path: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    code: int
    text: str  # stdout, or stderr where that is empty


Run = Callable[[tuple[str, ...]], Output]


def lsblk_argv() -> tuple[str, ...]:
    columns = "NAME,TYPE,SIZE,RO,MODEL,FSTYPE,LABEL,PTTYPE,MOUNTPOINTS"
    return ("lsblk", "--json", "--bytes", "--paths", "--output", columns)


def wipefs_argv(device: str) -> tuple[str, ...]:
    """Lists every signature on the disk and erases none."""
    return ("wipefs", "--no-act", "--noheadings", device)


def blkid_argv(device: str) -> tuple[str, ...]:
    """Looks at the disk itself, not into a cache; exit code 2 = it knows nothing on it."""
    return ("blkid", "--probe", device)


def mkfs_argv(device: str, label: str) -> tuple[str, ...]:
    return ("mkfs.ext4", "-q", "-m", "0", "-L", label, device)


def mount_argv(device: str, folder: Path) -> tuple[str, ...]:
    """By systemd's first process: what the agent mounted itself would stay in its own mount namespace (PrivateTmp of
    its unit), unseen by the engine."""
    options = "--options=noatime,nodev,nosuid,noexec"
    return ("systemd-mount", "--no-ask-password", "--collect", "--type=ext4", options, device, str(folder))


def parse_lsblk(text: str, exists: Callable[[str], bool] = os.path.exists) -> list[Block]:
    """Disks without a device file are left out: in a container the kernel lists those of its host. Raises PhaseError
    when it is not lsblk's JSON."""
    try:
        return [block for block in msgspec.json.decode(text, type=_Listing).blockdevices if exists(block.name)]
    except msgspec.DecodeError as error:
        raise PhaseError(f"lsblk gave no listing that can be read: {error}", "see `deployctl logs agent`") from error


def is_blank(wipefs: Output, blkid: Output) -> bool:
    """Both must have looked and found nothing: a failure of a tool proves nothing."""
    return wipefs.code == 0 and not wipefs.text.strip() and blkid.code == 2


def image_mounts_stores() -> bool:
    """The image itself takes care of instance stores."""
    return any(folder.exists() for folder in IMAGE_FOLDERS)


def has_idle_store(blocks: list[Block]) -> bool:
    """An instance store that nothing on this machine uses, yet or at all."""
    stores = (block for block in blocks if INSTANCE_STORE in (block.model or ""))
    return any(not any(part.mounted_at for part in _tree(store)) for store in stores)


def choose(blocks: list[Block], *, weights_disk: bool, need_bytes: int, format_stores: bool = True) -> Choice:
    """Raises PhaseError when a weights disk was asked for and none can be used."""
    label = WEIGHTS_LABEL if weights_disk else STORE_LABEL
    disks = [block for block in blocks if block.type == "disk" and not block.ro and block.size >= SMALLEST]
    disks = [disk for disk in disks if (INSTANCE_STORE in (disk.model or "")) != weights_disk]
    parts = [part for disk in disks for part in _tree(disk)]
    for part in parts:
        if part.label == label:
            return Choice("mounted", part.name, part.mounted_at) if part.mounted_at else Choice("mount", part.name)
    if not weights_disk:
        for part in parts:
            if part.mounted_at is not None:
                return Choice("mounted", part.name, part.mounted_at)
    blank = max((disk for disk in disks if disk.looks_blank), key=lambda disk: disk.size, default=None)
    large_enough = blank is not None and blank.size * USABLE >= need_bytes
    if blank is not None and (weights_disk or (format_stores and large_enough)):
        return Choice("format", blank.name, label=label)
    if weights_disk:
        others = ", ".join(disk.name for disk in disks if not any(part.mounted_at for part in _tree(disk)))
        raise PhaseError(
            f"the weights disk is not there, or not blank and not made by deployctl (unused disks: {others or 'none'})",
            "it is looked for again; a disk with data is never formatted: empty it yourself, or attach another",
        )
    return Choice("system")


def run_command(argv: tuple[str, ...]) -> Output:
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=TOOL_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Output(127, str(error))
    return Output(done.returncode, done.stdout or done.stderr)


def make_ready(choice: Choice, folder: Path, run: Run = run_command) -> Path | None:
    """Where weights may lie: on the chosen disk, which is mounted at `folder` unless it is mounted already. None = on
    the system disk. Raises PhaseError."""
    if choice.kind == "system":
        return None
    if choice.kind == "mounted":
        return Path(choice.path)
    if choice.kind == "format":
        if not is_blank(run(wipefs_argv(choice.device)), run(blkid_argv(choice.device))):
            raise PhaseError(
                f"{choice.device} cannot be proved blank; it was not touched",
                f"look with `wipefs {choice.device}` and `blkid --probe {choice.device}`",
            )
        _do(run, mkfs_argv(choice.device, choice.label))
    folder.mkdir(parents=True, exist_ok=True)
    _do(run, mount_argv(choice.device, folder))
    return folder


def _do(run: Run, argv: tuple[str, ...]) -> None:
    done = run(argv)
    if done.code != 0:
        raise PhaseError(f"{' '.join(argv)}: {done.text.strip() or f'exit {done.code}'}", "see `deployctl logs agent`")


def _tree(block: Block) -> Iterator[Block]:
    yield block
    for child in block.children:
        yield from _tree(child)
