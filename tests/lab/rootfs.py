"""Debian root filesystems for guests: built once with mmdebstrap, kept in the user's cache by what they are made of.

$XDG_CACHE_HOME/deployctl/lab/rootfs/<suite>-<hash of the recipe>/     never changed: guests lay an overlay over it

    python3 -m tests.lab.rootfs     builds all of them at once, ahead of the tests (standard library only)
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

Suite = Literal["bookworm", "trixie"]
PYTHON: dict[Suite, str] = {"bookworm": "3.11", "trixie": "3.13"}

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR = "http://deb.debian.org/debian"
PACKAGES = (
    "ca-certificates",
    "cloud-init",
    "dbus",
    "iproute2",
    "netbase",
    "openssh-server",
    "procps",
    "python3",
    "python3-venv",
    "sudo",
    "systemd",
    "systemd-sysv",
    "udev",
)
DMI_FOLDER = "/etc/lab-dmi"
# cloud-init believes no DMI strings in a container, and without them it takes neither EC2's token path nor Alibaba's
# datasource; it also waits for a udev that no container has, and for a DHCP server: a guest has its address before it
# starts. Images have no machine id and no host keys of their own.
FINISH = f"""
sed -i 's#/sys/class/dmi/id#{DMI_FOLDER}#; s/if is_container():/if False:/' \
    "$1/usr/lib/python3/dist-packages/cloudinit/dmi.py"
ln -s /bin/true "$1/usr/local/bin/udevadm"
rm -f "$1"/usr/sbin/dhclient "$1"/etc/ssh/ssh_host_*
: > "$1/etc/machine-id"
"""


def cache() -> Path:
    """The lab's part of the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deployctl" / "lab"


def rootfs(suite: Suite) -> Path:
    """The folder of a suite's root filesystem; takes about a minute when it must be built."""
    recipe = hashlib.sha256("\n".join((suite, MIRROR, *PACKAGES, FINISH)).encode()).hexdigest()[:16]
    return build_once(cache() / "rootfs" / f"{suite}-{recipe}", lambda folder: _build(suite, folder))


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, made by `build` under another name when it is not there; runs beside it wait for the first."""
    with _locked(folder.with_name(folder.name + ".lock")):
        if not folder.exists():
            unfinished = folder.with_name(folder.name + ".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            build(unfinished)
            unfinished.rename(folder)
    return folder


def _build(suite: Suite, folder: Path) -> None:
    command = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        '--aptopt=APT::Install-Recommends "false"',
        f"--customize-hook={FINISH}",
        suite,
        str(folder),
        MIRROR,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"mmdebstrap {suite} ended with {done.returncode}:\n{done.stderr[-4000:]}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    with ThreadPoolExecutor() as pool:
        for built in pool.map(rootfs, PYTHON):
            print(built)
