"""`deployctl weights push`: a model from a hub or folder into a bucket, file by file.

At most two files lie on this machine at a time: one is fetched while another is sent. What is in the bucket with the
same size and SHA-256 is skipped, so that the same command goes on where it was stopped.

    <prefix>/<file>                     the model
    <prefix>/deployctl-push.json        a Manifest of what has arrived, while a push is under way
    <prefix>/deployctl-manifest.json    the whole, written last: a machine trusts the prefix only with it
"""

from __future__ import annotations

import functools
import hashlib
import queue
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from provision.errors import CloudError, DeployctlError, DiskFullError, MissingPartError
from provision.model_source import ModelSourceError
from provision.origins import Origin, OriginFile
from runtime.bucket import NO_CLIENT, Bucket, BucketError
from runtime.deployment import encode
from runtime.model_files import MANIFEST, PUSH_RECORD, Manifest, ManifestFile, decode_manifest

ON_DISK = 2  # files at a time
HASH_CHUNK = 8 * 2**20


@dataclass(frozen=True, slots=True)
class PushProgress:
    """`sent` and `total` in bytes, without what was there already."""

    file: str
    sent: int
    total: int


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did. `skipped`: files that were there."""

    source: str
    commit: str | None
    files: int
    skipped: int
    sent: int


@dataclass(frozen=True, slots=True)
class Fetched:
    file: OriginFile
    path: Path
    sha256: str


Report = Callable[[PushProgress], None]


class Push:
    """One push. `prefix` without slashes at its ends; `cache`: a folder of its own, with room for two files."""

    def __init__(self, origin: Origin, bucket: Bucket, prefix: str, cache: Path, report: Report) -> None:
        self._origin = origin
        self._bucket = bucket
        self._prefix = prefix
        self._cache = cache
        self._report = report
        self._lock = threading.Lock()
        self._sent = 0
        self._total = 0

    def run(self) -> Pushed:
        """Raises BucketError, ModelSourceError, DiskFullError, OSError."""
        origin = self._origin
        self._bucket.drop_uploads(self._key(""))
        present = self._present()
        there = [entry for file in origin.files if (entry := present.get(file.name)) and self._is_there(file, entry)]
        names = {entry.name for entry in there}
        missing = [file for file in origin.files if file.name not in names]
        self._total = sum(file.size for file in missing)
        if missing:
            self._check_space(missing)
            self._bucket.put(self._key(PUSH_RECORD), self._manifest(there))
            self._bucket.delete([self._key(MANIFEST)])  # a machine that comes now waits
            there = self._send_all(missing, there)
        self._check_sizes(there)
        self._bucket.put(self._key(MANIFEST), self._manifest(there))
        self._bucket.delete([self._key(PUSH_RECORD)])
        shutil.rmtree(self._cache, ignore_errors=True)
        return Pushed(origin.source, origin.commit, len(origin.files), len(origin.files) - len(missing), self._sent)

    def _present(self) -> dict[str, ManifestFile]:
        """What an earlier push has left and the bucket still holds at that size."""
        start = self._key("")
        sizes = {blob.key.removeprefix(start): blob.size for blob in self._bucket.blobs(start)}
        found: dict[str, ManifestFile] = {}
        for key in (MANIFEST, PUSH_RECORD):
            data = self._bucket.get(self._key(key)) if key in sizes else None
            try:
                entries = decode_manifest(data).files if data else ()
            except msgspec.DecodeError:
                entries = ()
            found |= {entry.name: entry for entry in entries if sizes.get(entry.name) == entry.size}
        return found

    def _is_there(self, file: OriginFile, entry: ManifestFile) -> bool:
        """Whether the bucket holds this very content."""
        if file.size != entry.size:
            return False
        if self._origin.keeps_files:
            return file_sha256(self._origin.fetch(file, self._cache)) == entry.sha256
        if file.sha256 is not None:
            return file.sha256 == entry.sha256
        return file.blob is not None and file.blob == entry.blob

    def _send_all(self, missing: list[OriginFile], there: list[ManifestFile]) -> list[ManifestFile]:
        room = threading.Semaphore(ON_DISK)
        fetched: queue.SimpleQueue[Fetched | Exception] = queue.SimpleQueue()
        # A daemon, so that Ctrl-C need not wait for a download.
        threading.Thread(target=self._fetch_all, args=(missing, room, fetched), daemon=True).start()
        done = list(there)
        for _ in missing:
            item = fetched.get()
            if isinstance(item, Exception):
                raise item
            move = functools.partial(self._move, item.file.name)
            self._bucket.upload(self._key(item.file.name), str(item.path), move)
            done.append(ManifestFile(name=item.file.name, size=item.file.size, sha256=item.sha256, blob=item.file.blob))
            self._bucket.put(self._key(PUSH_RECORD), self._manifest(done))
            if not self._origin.keeps_files:
                item.path.unlink()
            room.release()
        return done

    def _fetch_all(
        self, missing: list[OriginFile], room: threading.Semaphore, fetched: queue.SimpleQueue[Fetched | Exception]
    ) -> None:
        try:
            for file in missing:
                room.acquire()
                fetched.put(self._fetch(file))
        except Exception as error:
            fetched.put(error)

    def _fetch(self, file: OriginFile) -> Fetched:
        """One file on this disk, checked; a wrong one is fetched once more. Raises ModelSourceError, OSError."""
        self._cache.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            path = self._origin.fetch(file, self._cache)
            sha256 = file_sha256(path)
            if path.stat().st_size == file.size and file.sha256 in (None, sha256):
                return Fetched(file, path, sha256)
            if self._origin.keeps_files:
                break
            path.unlink()
        raise ModelSourceError(f"{file.name} arrives different from what {self._origin.source} lists (size or SHA-256)")

    def _move(self, name: str, more: int) -> None:
        with self._lock:
            self._sent += more
            self._report(PushProgress(name, self._sent, self._total))

    def _check_space(self, missing: list[OriginFile]) -> None:
        if self._origin.keeps_files:
            return
        self._cache.mkdir(parents=True, exist_ok=True)
        need = sum(sorted(file.size for file in missing)[-ON_DISK:])
        free = shutil.disk_usage(self._cache).free
        if need > free:
            raise DiskFullError(
                f"{self._cache} has no room for two files of the model",
                why=f"{need / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free",
                next_command="deployctl weights push … --cache /a/larger/disk",
            )

    def _check_sizes(self, done: list[ManifestFile]) -> None:
        start = self._key("")
        sizes = {blob.key.removeprefix(start): blob.size for blob in self._bucket.blobs(start)}
        for entry in done:
            if sizes.get(entry.name) != entry.size:
                raise BucketError(f"{entry.name} has {sizes.get(entry.name)} bytes in the bucket, not {entry.size}")

    def _manifest(self, files: list[ManifestFile]) -> bytes:
        ordered = tuple(sorted(files, key=lambda entry: entry.name))
        return encode(Manifest(source=self._origin.source, commit=self._origin.commit, files=ordered))

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as data:
        while chunk := data.read(HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def bucket_problem(error: BucketError, next_command: str) -> DeployctlError:
    """A store's refusal as an expected error."""
    if error.code == NO_CLIENT:
        return MissingPartError("the client of this cloud's object store is not installed", why=str(error))
    what = "the bucket cannot be reached" if error.transient else "the bucket refuses"
    return CloudError(what, why=str(error), next_command=next_command)
