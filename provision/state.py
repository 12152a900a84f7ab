"""State of local deployments: one folder per deployment under the XDG state folder, mode 0700.

$XDG_STATE_HOME/deployctl/<name>/
    mailbox/       the channel to the machine's side (runtime.mailbox)
    machine/       the machine's side: releases, logs, sockets, supervisor.json
    api_key        the key in clear, 0600
    spec.json      what the user asked for
    lock           flock + who holds it
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import re
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from provision import process
from provision.errors import LockedError, NotFoundError, StateError, UsageError
from provision.fields import BY_NAME, SECRETS
from runtime.deployment import ApiKey, Deployment, decode_deployment, decode_keys
from runtime.mailbox import (
    CURRENT,
    KEYS,
    STATUS,
    Current,
    FolderMailbox,
    Status,
    decode_current,
    decode_status,
    write_atomic,
)

T = TypeVar("T")
NAME = re.compile(r"^[a-z][a-z0-9-]{1,24}$")
KEY_BYTES = 32  # 256 random bits


def state_root() -> Path:
    """Folder of all deployments: `$XDG_STATE_HOME/deployctl`, default ~/.local/state."""
    return _xdg("XDG_STATE_HOME", ".local/state")


def cache_root() -> Path:
    """Folder of caches that deployments share: `$XDG_CACHE_HOME/deployctl`, default ~/.cache."""
    return _xdg("XDG_CACHE_HOME", ".cache")


def _xdg(variable: str, default: str) -> Path:
    # The XDG rules say that a relative path there is to be ignored.
    base = Path(os.environ.get(variable, ""))
    return (base if base.is_absolute() else Path.home() / default) / "deployctl"


class SupervisorRecord(msgspec.Struct, frozen=True):
    """`machine/supervisor.json`. `started_at` = start ticks of the process, so that a reused pid is told apart."""

    pid: int
    started_at: int
    port: int

    def is_alive(self) -> bool:
        return process.is_same_process(self.pid, self.started_at)


class LockHolder(msgspec.Struct, frozen=True):
    """Who holds a deployment's lock. `since` in seconds since the epoch."""

    pid: int
    command: str
    user: str
    since: float


@dataclass(frozen=True, slots=True)
class LocalState:
    """Paths and readers of one deployment's folder. Readers raise StateError for a broken file."""

    name: str
    root: Path

    @property
    def mailbox_dir(self) -> Path:
        return self.root / "mailbox"

    @property
    def machine_dir(self) -> Path:
        return self.root / "machine"

    @property
    def logs_dir(self) -> Path:
        return self.machine_dir / "logs"

    @property
    def run_dir(self) -> Path:
        return self.machine_dir / "run"

    @property
    def key_file(self) -> Path:
        return self.root / "api_key"

    @property
    def spec_file(self) -> Path:
        return self.root / "spec.json"

    @property
    def specs_dir(self) -> Path:
        """The spec of each release, for the way back."""
        return self.root / "specs"

    @property
    def lock_file(self) -> Path:
        return self.root / "lock"

    @property
    def mailbox(self) -> FolderMailbox:
        return FolderMailbox(self.mailbox_dir)

    def exists(self) -> bool:
        return self.root.is_dir()

    def supervisor(self) -> SupervisorRecord | None:
        """The record as written, alive or not; None when the supervisor never started or ended cleanly."""
        path = self.machine_dir / "supervisor.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=SupervisorRecord)
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, OSError) as error:
            raise self._broken(path, error) from error

    def running_supervisor(self) -> SupervisorRecord | None:
        """The supervisor's record when its process lives."""
        record = self.supervisor()
        return record if record and record.is_alive() else None

    def current(self) -> Current | None:
        return self._read(CURRENT, decode_current)

    def deployment(self) -> Deployment | None:
        """`deployment.json` of the release that the machine should run."""
        current = self.current()
        return self._read(current.deployment, decode_deployment) if current else None

    def api_keys(self) -> list[ApiKey]:
        """All keys that the machine lets in, the default first; none before the first `up`."""
        return self._read(KEYS, decode_keys) or []

    def status(self) -> Status | None:
        """The machine's last report, of whatever release it is."""
        return self._read(STATUS, decode_status)

    def _read(self, key: str, decode: Callable[[bytes], T]) -> T | None:
        """An object of the mailbox; None when it is missing."""
        try:
            data = self.mailbox.get(key)
            return None if data is None else decode(data)
        except (msgspec.DecodeError, OSError) as error:
            raise self._broken(self.mailbox_dir / key, error) from error

    def spec_values(self, release: str | None = None) -> dict[str, object] | None:
        """What the user asked for, last or for `release`, by field of the spec and without secrets; None when nobody
        has."""
        path = self.spec_file if release is None else self.specs_dir / f"{release}.json"
        try:
            values = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise self._broken(path, error) from error
        if not isinstance(values, dict):
            raise self._broken(path, ValueError("it does not hold a JSON object"))
        return values

    def api_key(self) -> str | None:
        try:
            return self.key_file.read_text(encoding="utf-8").strip() or None
        except FileNotFoundError:
            return None

    def write_api_key(self, key: str) -> None:
        write_atomic(self.key_file, key.encode() + b"\n")

    def next_release(self) -> str:
        """`r1`, `r2`, …: one more than the highest that the mailbox has seen."""
        folder = self.mailbox_dir / "release"
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        numbers = [int(name[1:]) for name in names if re.fullmatch(r"r\d+", name)]
        return f"r{max(numbers, default=0) + 1}"

    def forget_releases(self, kept: Sequence[str]) -> list[str]:
        """Deletes what is written here of releases that are not `kept`; returns which. The highest number stays: it is
        never given again."""
        current = self.current()
        stays = {*kept, f"r{int(self.next_release()[1:]) - 1}", *([current.release] if current else [])}
        folder = self.mailbox_dir / "release"
        gone = [entry for entry in folder.iterdir() if entry.is_dir() and entry.name not in stays]
        for entry in gone:
            shutil.rmtree(entry)
            for spec in self.specs_dir.glob(f"{entry.name}.*"):
                spec.unlink()
        return sorted(entry.name for entry in gone)

    def remove(self) -> None:
        """Deletes the folder and the run folder outside of it, if the supervisor needed one."""
        if self.run_dir.is_symlink():
            target = self.run_dir.resolve()
            if target.is_dir() and target.stat().st_uid == os.getuid() and target != self.run_dir:
                shutil.rmtree(target, ignore_errors=True)
        if self.root.is_symlink() or not self.root.is_dir():
            self.root.unlink(missing_ok=True)
        else:
            shutil.rmtree(self.root)

    def _broken(self, path: Path, error: Exception) -> StateError:
        return StateError(
            f"the state of deployment {self.name} is damaged",
            why=f"{path}: {error}",
            next_command=f"deployctl down {self.name}",
        )


def open_state(name: str) -> LocalState:
    """The state folder of `name`, which need not exist. Raises UsageError for an impossible name."""
    if not NAME.match(name):
        raise UsageError(
            f"{name!r} is not a deployment name",
            why="a name has 2 to 25 characters: a small letter, then small letters, digits or '-'",
            next_command="deployctl ps",
        )
    return LocalState(name, state_root() / name)


def list_states() -> list[LocalState]:
    """All deployments of this user, by name."""
    root = state_root()
    if not root.is_dir():
        return []
    return [LocalState(entry.name, entry) for entry in sorted(root.iterdir()) if NAME.match(entry.name)]


def choose_state(name: str | None) -> LocalState:
    """The deployment called `name`, or the only one there is. Raises NotFoundError."""
    states = list_states()
    names = ", ".join(state.name for state in states)
    if name is not None:
        state = open_state(name)
        if state.exists():
            return state
        raise NotFoundError(
            f"there is no deployment called {name}",
            why=f"there is: {names}" if names else "there is none at all",
            next_command="deployctl ps" if names else f"deployctl up --name {name} --model demo",
        )
    if not states:
        raise NotFoundError("there is no deployment", next_command="deployctl up --model demo")
    if len(states) > 1:
        raise NotFoundError(
            "there are several deployments and none was named",
            why=names,
            next_command=f"the same command with --name {states[0].name}",
        )
    return states[0]


def make_api_key() -> str:
    """A random 256-bit key in the form that OpenAI clients expect."""
    return "sk-" + secrets.token_urlsafe(KEY_BYTES)


@contextlib.contextmanager
def locked(state: LocalState, command: str) -> Iterator[None]:
    """Holds the deployment's lock. Raises LockedError that says who holds it.

    The kernel drops a flock with its process, so that a killed command blocks nobody.
    """
    from provision.audit import note  # it reads this module

    descriptor = _take_lock(state, command)
    note(state.name, command)
    try:
        yield
    finally:
        # A command that was refused before it made anything leaves no folder behind.
        with contextlib.suppress(OSError):
            if [entry.name for entry in state.root.iterdir()] == [state.lock_file.name]:
                state.remove()
        os.close(descriptor)


def _take_lock(state: LocalState, command: str) -> int:
    while True:
        state.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(state.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _lock_holder(state)
            os.close(descriptor)
            raise _locked_error(state.name, holder) from None
        # `down` of another process may have removed the file between open and flock: then the lock is worth nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == state.lock_file.stat().st_ino:
                break
        os.close(descriptor)
    mine = LockHolder(os.getpid(), command, current_user(), time.time())
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, msgspec.json.encode(mine), 0)
    return descriptor


def interrupt_holder(state: LocalState, *, timeout_s: float) -> LockHolder | None:
    """Ends the command that works on this deployment, as Ctrl-C would, so that `down` need not wait for it.

    Returns who it was, or None when nobody holds the lock. `timeout_s` seconds later it is killed.
    """
    holder = _lock_holder(state)
    if holder is None or holder.pid == os.getpid() or not process.holds_open(holder.pid, state.lock_file):
        return None
    ticks = {holder.pid: process.start_ticks(holder.pid)}
    with contextlib.suppress(ProcessLookupError):
        os.kill(holder.pid, signal.SIGINT)
    if not process.wait_until_gone(ticks, timeout_s):
        process.end_processes([holder.pid], grace_s=1.0)
    return holder


def _lock_holder(state: LocalState) -> LockHolder | None:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(state.lock_file.read_bytes(), type=LockHolder)
    return None


def _locked_error(name: str, holder: LockHolder | None) -> LockedError:
    if holder is None:
        return LockedError(f"another command works on {name}", next_command=f"deployctl status {name}")
    ago = time.time() - holder.since
    return LockedError(
        f"another command works on {name}",
        why=f"`{holder.command}` of {holder.user}, pid {holder.pid}, since {ago:.0f} s",
        next_command=f"deployctl status {name}",
    )


def current_user() -> str:
    """The name of who runs this command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's uid without a passwd entry
        return str(os.getuid())


def this_command() -> str:
    """What the user typed, without the values of secret options."""
    return " ".join(without_secrets(["deployctl", *sys.argv[1:]]))


def without_secrets(words: list[str]) -> list[str]:
    """The words of a command line with the values of secret options replaced by "…"."""
    hidden = {BY_NAME[name].flag for name in SECRETS}
    shown = []
    for index, word in enumerate(words):
        option, equals, _ = word.partition("=")
        if equals and option in hidden:
            word = f"{option}=…"
        elif index and words[index - 1] in hidden:
            word = "…"
        shown.append(word)
    return shown
