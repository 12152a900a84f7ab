"""A machine's files over SSH, as root: replaced whole, and uploads that go on where they were cut."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import posixpath
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from provision.errors import DiskFullError, RemoteError
from provision.remote import CHUNK, Remote, failures

if TYPE_CHECKING:
    from paramiko import SFTPClient

Report = Callable[[int, int], None]
"""Bytes that are there, and how many there will be."""


class Files:
    """Methods raise ConnectionFailedError when the connection breaks."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    @functools.cached_property
    def _sftp(self) -> SFTPClient:
        return self._remote.open_sftp()

    def get(self, path: str) -> bytes | None:
        """A file's content, None when it is not there."""
        with failures(self._remote.login):
            try:
                with self._sftp.open(path, "rb") as file:
                    file.prefetch()
                    return bytes(file.read())
            except FileNotFoundError:
                return None

    def put(self, path: str, data: bytes, mode: int = 0o600) -> None:
        """A reader sees the old content or the new one, never half. Raises DiskFullError, RemoteError."""
        new = posixpath.join(posixpath.dirname(path), f".{posixpath.basename(path)}.new")
        self.make_folder(posixpath.dirname(path))
        with self._writing(path, len(data)):
            with self._sftp.open(new, "wb") as file:
                file.write(data)
            self._sftp.chmod(new, mode)
            self._sftp.posix_rename(new, path)

    def make_folder(self, path: str, mode: int = 0o755) -> None:
        """With its parents; one that is there is left as it is."""
        with self._writing(path, 0):
            missing = []
            while path not in ("", "/") and not self._exists(path):
                missing.append(path)
                path = posixpath.dirname(path)
            for folder in reversed(missing):
                self._sftp.mkdir(folder, mode)
                self._sftp.chmod(folder, mode)

    def names(self, folder: str) -> list[str]:
        """What lies in a folder; nothing where there is none."""
        with failures(self._remote.login):
            try:
                return sorted(self._sftp.listdir(folder))
            except FileNotFoundError:
                return []

    def remove(self, path: str) -> None:
        with failures(self._remote.login), contextlib.suppress(FileNotFoundError):
            self._sftp.remove(path)

    def upload(self, local: Path, path: str, report: Report | None = None, mode: int = 0o644) -> int:
        """Brings a file over, from where an earlier upload was cut, and checks its SHA-256 there. Returns the bytes
        that were sent; 0 = it was there already. Raises ConnectionFailedError (call it again: what arrived stays),
        DiskFullError, RemoteError."""
        digest = file_digest(local)
        if self._exists(path) and self.digest(path) == digest:
            return 0
        self.make_folder(posixpath.dirname(path))
        part, sent = path + ".part", 0
        for attempt in (1, 2):
            sent += self._append(local, part, report)
            found = self.digest(part)
            if found == digest:
                break
            self.remove(part)
            if attempt == 2:
                raise RemoteError(
                    f"{local.name} arrives at {self._remote.login.target} different from what was sent, twice",
                    why=f"SHA-256 is {found}, not {digest}",
                    next_command="the same command again, and a check of that machine's disk",
                )
        with self._writing(path, 0):
            self._sftp.chmod(part, mode)
            self._sftp.posix_rename(part, path)
        return sent

    def digest(self, path: str) -> str:
        """SHA-256 of a file there, read by root there."""
        return self._remote.do(["sha256sum", "--", path], what=f"the checksum of {path}").text.split()[0]

    def _append(self, local: Path, part: str, report: Report | None) -> int:
        size = local.stat().st_size
        with self._writing(part, size):
            start = self._sftp.stat(part).st_size or 0 if self._exists(part) else 0
            if start > size:
                self._sftp.remove(part)
                start = 0
            with local.open("rb") as source, self._sftp.open(part, "ab") as target:
                source.seek(start)
                target.set_pipelined(True)
                at = start
                while data := source.read(CHUNK):
                    target.write(data)
                    at += len(data)
                    if report is not None:
                        report(at, size)
            # Pipelined writes are not answered one by one, and nobody tells of one that failed.
            if (self._sftp.stat(part).st_size or 0) != size:
                raise OSError(f"only {self._sftp.stat(part).st_size} bytes have arrived")
        return size - start

    def _exists(self, path: str) -> bool:
        with failures(self._remote.login):
            try:
                self._sftp.stat(path)
            except FileNotFoundError:
                return False
            return True

    @contextmanager
    def _writing(self, path: str, size: int) -> Iterator[None]:
        """SFTP has one code for every failure: a full disk is found by looking."""
        with failures(self._remote.login):
            try:
                yield
            except OSError as error:
                if not self._remote.is_open or isinstance(error, ConnectionError):
                    raise
                free = self.free_bytes(posixpath.dirname(path))
                if free is not None and free < max(size, 2**20):
                    raise DiskFullError(
                        f"the disk of {self._remote.login.target} is full",
                        why=f"{path}: {size} bytes were to be written, {free} are free there",
                        next_command=f"deployctl exec {self._remote.login.name} -- df -h {posixpath.dirname(path)}",
                    ) from error
                raise RemoteError(
                    f"{path} cannot be written on {self._remote.login.target}",
                    why=str(error),
                    next_command="df -h; ls -ld",
                ) from error

    def free_bytes(self, folder: str) -> int | None:
        """Free on the disk of `folder`, or of the nearest folder above that exists; None = not known."""
        while folder not in ("", "/"):
            done = self._remote.run(["df", "--output=avail", "-B1", "--", folder])
            if done.code == 0:
                return int(done.text.split()[-1])
            folder = posixpath.dirname(folder)
        return None


def file_digest(path: Path) -> str:
    """SHA-256 of a file here."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
