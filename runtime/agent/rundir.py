"""The folder of unix sockets of one deployment, and the lock that makes a supervisor the only one.

A unix socket's path may have at most 107 bytes (sun_path), so for a deep state folder `machine/run` is a
symlink to a private folder under $XDG_RUNTIME_DIR or, where that is deep too, the system's temporary folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

MAX_SOCKET_PATH = 100  # bytes, with the longest name in the folder
LONGEST_NAME = "control.sock"


def make_run_dir(state: Path) -> Path:
    """Creates `state/run` (mode 0700) or what it links to, and returns the real folder. Safe to repeat."""
    link = state / "run"
    if _fits(link):
        link.mkdir(mode=0o700, parents=True, exist_ok=True)
        return link
    target = _short_folder(state)
    target.mkdir(mode=0o700, exist_ok=True)
    _refuse_foreign(target)
    if not (link.is_symlink() and os.readlink(link) == str(target)):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    return target


def remove_run_dir(state: Path) -> None:
    link = state / "run"
    if link.is_symlink():
        shutil.rmtree(os.readlink(link), ignore_errors=True)
        link.unlink(missing_ok=True)
    else:
        shutil.rmtree(link, ignore_errors=True)


def lock_state(state: Path) -> int | None:
    """Locks the folder itself, so that no file is left behind. Held until the returned descriptor is closed
    or the process ends; None when another process has it."""
    fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _short_folder(state: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(state)).hexdigest()[:12]
    name = f"deployctl-{os.getuid()}-{digest}"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and _fits(Path(runtime) / name):
        return Path(runtime) / name
    return Path(tempfile.gettempdir()) / name


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder / LONGEST_NAME)) <= MAX_SOCKET_PATH


def _refuse_foreign(folder: Path) -> None:
    """In a shared temporary folder someone else may have been first. Raises PermissionError."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != 0o700:
        raise PermissionError(f"{folder} is not a private folder of this user; remove it and try again")
