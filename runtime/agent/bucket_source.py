"""Worker `python -m runtime.agent.bucket_source`: a model's files from an S3 or OSS prefix, in parallel ranges.

Reads a BucketJob from stdin. What a manifest of `deployctl weights push` names is checked against its SHA-256; without
a manifest, against the store's own checksum where it keeps one of the content. An object that is replaced meanwhile
cannot mix with the old one: each range asks for the listed ETag.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec

from runtime.agent.download import (
    HASH_CHUNK,
    DownloadError,
    Meter,
    Record,
    SourceFile,
    check_space,
    explain_common,
    file_digest,
    first_line,
    kept_record,
    read_record,
    run_job,
    write_record,
)
from runtime.agent.ranges import PartFile
from runtime.agent.worker import WorkerLine
from runtime.bucket import NO_CLIENT, NO_CREDENTIALS, Bucket, BucketError, Checksum, open_bucket
from runtime.deployment import Struct
from runtime.model_files import MANIFEST, PUSH_RECORD, Manifest, choose_files, decode_manifest
from runtime.vm import Provider

PARALLEL = 8  # ranges at a time
RANGE_BYTES = 16 * 2**20
ATTEMPTS = 5  # of one range in a row without one more byte
BACK_OFF_S = 0.5
BACK_OFF_MOST_S = 8.0
PUSH_AGAIN = "run `deployctl weights push` again"
SPACE_HINT = "free space there, or choose a larger disk; finished ranges are kept"


class BucketJob(Struct, frozen=True):
    """What the worker reads from stdin. `folder` and `record` are paths; each revision has a folder below `folder`."""

    provider: Provider
    region: str
    bucket: str
    prefix: str
    folder: str
    record: str
    endpoint: str | None = None

    @property
    def place(self) -> str:
        scheme = "s3" if self.provider == "aws" else "oss"
        return "/".join(part for part in (f"{scheme}://{self.bucket}", self.prefix) if part)

    def key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name


class Cancelled(Exception):
    """Another range has failed for good."""


class BucketDownload:
    """One job from listing to record."""

    def __init__(self, job: BucketJob, bucket: Bucket) -> None:
        self._job = job
        self._bucket = bucket
        self._finished = 0
        self._checked = 0
        self._parts: list[PartFile] = []
        self._stop = threading.Event()

    def run(self) -> WorkerLine:
        job = self._job
        try:
            files, commit = self._list()
        except BucketError as error:
            kept = read_record(Path(job.record))
            if error.transient and kept is not None and kept.is_complete():
                print(f"{error}; using the files of {kept.commit}", file=sys.stderr)
                return WorkerLine(path=kept.path, revision=kept.commit)
            raise
        if kept := kept_record(Path(job.record), commit, files):
            return WorkerLine(path=kept.path, revision=commit)
        folder = Path(job.folder) / hashlib.sha256(_identity(files)).hexdigest()[:16]
        missing = [file for file in files if not _is_there(folder / file.name, file.size)]
        self._finished = sum(file.size for file in files) - sum(file.size for file in missing)
        parts = [PartFile(folder / file.name, file.size, file.blob) for file in missing]
        self._parts = parts
        check_space(folder, sum(part.size - part.present for part in parts), SPACE_HINT)
        with Meter(self, sum(file.size for file in files), each=self._sync):
            self._fetch_all(missing)
        return write_record(Path(job.record), Record(commit=commit, path=str(folder), files=files))

    def present(self) -> int:
        return self._finished + sum(part.present for part in self._parts)

    def moved(self) -> int:
        return self.present() + self._checked

    def _list(self) -> tuple[tuple[SourceFile, ...], str]:
        """The files to fetch, and the revision that they are. Raises BucketError, UnservableError, DownloadError."""
        job = self._job
        start = job.key("")
        found = {blob.key.removeprefix(start): blob for blob in self._bucket.blobs(start)}
        if not found:
            raise DownloadError(f"there is nothing under {job.place}", f"check the name; to fill it, {PUSH_AGAIN}")
        if PUSH_RECORD in found and MANIFEST not in found:
            raise DownloadError(f"a push to {job.place} is under way or was cut off", PUSH_AGAIN, transient=True)
        manifest = self._manifest() if MANIFEST in found else None
        listed = {file.name: file for file in manifest.files} if manifest else {}
        names = choose_files(list(listed or found), job.place)
        for name, file in listed.items():
            if name not in found or found[name].size != file.size:
                raise DownloadError(f"{job.place}/{name} is missing or not of the size in {MANIFEST}", PUSH_AGAIN)
        files = tuple(
            SourceFile(
                name=name,
                size=found[name].size,
                blob=found[name].etag,
                sha256=listed[name].sha256 if name in listed else None,
            )
            for name in sorted(names)
        )
        commit = manifest.commit if manifest else None
        return files, commit or f"etags-{hashlib.sha256(_identity(files)).hexdigest()[:16]}"

    def _manifest(self) -> Manifest:
        data = self._bucket.get(self._job.key(MANIFEST))
        try:
            return decode_manifest(data or b"")
        except msgspec.DecodeError as error:
            raise DownloadError(f"{self._job.place}/{MANIFEST} is damaged: {error}", PUSH_AGAIN) from error

    def _fetch_all(self, files: list[SourceFile]) -> None:
        with ThreadPoolExecutor(PARALLEL) as pool:
            try:
                ranges = [
                    (file, part, self._submit(pool, file, part)) for file, part in zip(files, self._parts, strict=True)
                ]
                for position, (file, part, futures) in enumerate(ranges):
                    for future in futures:
                        future.result()
                    self._check(pool, position, file, part)
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                for part in self._parts:
                    part.close()

    def _submit(self, pool: ThreadPoolExecutor, file: SourceFile, part: PartFile) -> list[Future[None]]:
        return [pool.submit(self._fetch, file, part, start, end) for start, end in cut(part.gaps())]

    def _fetch(self, file: SourceFile, part: PartFile, start: int, end: int) -> None:
        """One range; goes on where the connection was cut, as long as something comes."""
        position, fruitless = start, 0
        while position < end:
            before = position
            try:
                for chunk in self._bucket.stream(self._job.key(file.name), position, end, file.blob):
                    if self._stop.is_set():
                        raise Cancelled
                    part.write(position, chunk)
                    position += len(chunk)
            except BucketError as error:
                fruitless = 0 if position > before else fruitless + 1
                if not error.transient or fruitless >= ATTEMPTS:
                    raise
                self._stop.wait(min(BACK_OFF_MOST_S, BACK_OFF_S * 2**fruitless))
        part.sync()

    def _check(self, pool: ThreadPoolExecutor, position: int, file: SourceFile, part: PartFile) -> None:
        """Compares content with what is known of it; a wrong file is fetched once more."""
        checksum = Checksum("sha256", file.sha256) if file.sha256 else self._bucket.checksum(self._job.key(file.name))
        for attempt in (1, 2):
            if checksum is None or self._digest(part.content(), checksum) == checksum.value:
                part.finish()
                return
            part.discard()
            if attempt == 1:
                part = self._parts[position] = PartFile(part.path, file.size, file.blob)
                for future in self._submit(pool, file, part):
                    future.result()
        assert checksum is not None
        raise DownloadError(
            f"{self._job.place}/{file.name} arrives different from its {checksum.algorithm}, twice", PUSH_AGAIN
        )

    def _digest(self, path: Path, checksum: Checksum) -> str:
        if checksum.algorithm in ("sha256", "md5"):
            return file_digest(path, checksum.algorithm, self._saw)
        return f"{self._crc(path, checksum):0{len(checksum.value)}x}"

    def _crc(self, path: Path, checksum: Checksum) -> int:
        if checksum.algorithm == "crc32":
            value = 0
            for chunk in self._chunks(path):
                value = zlib.crc32(chunk, value)
            return value
        from alibabacloud_oss_v2.crc import Crc64

        crc = Crc64(0)
        for chunk in self._chunks(path):
            crc.update(chunk)
        return int(crc.sum64())

    def _chunks(self, path: Path) -> Iterator[bytes]:
        with open(path, "rb") as data:
            while chunk := data.read(HASH_CHUNK):
                yield chunk
                self._saw(len(chunk))

    def _saw(self, count: int) -> None:
        self._checked += count

    def _sync(self) -> None:
        for part in self._parts:
            part.sync()


def cut(gaps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Gaps in pieces of at most RANGE_BYTES."""
    return [(first, min(first + RANGE_BYTES, end)) for start, end in gaps for first in range(start, end, RANGE_BYTES)]


def explain(error: Exception, job: BucketJob) -> WorkerLine:
    """A failure for a person."""
    if common := explain_common(error):
        return common
    if not isinstance(error, BucketError):
        return WorkerLine(error=f"{type(error).__name__}: {first_line(error)}", hint="see `deployctl logs agent`")
    hint = "check the network; finished ranges are kept, and it is tried again"
    transient = error.transient
    if error.code == NO_CLIENT:
        hint = "the installation lacks this store's client; see the error"
    elif error.code == NO_CREDENTIALS:
        hint = "give the machine a role that may read the bucket, or set credentials"
    elif error.code in ("AccessDenied", "403", "AllAccessDisabled"):
        hint = f"allow the machine's role to list and read {job.place}; `deployctl permissions` prints what it needs"
    elif error.code == "NoSuchBucket":
        hint = "check the bucket's name and region: it must be in the machine's region"
    elif error.code == "PreconditionFailed":
        hint, transient = "an object was replaced meanwhile; it is listed anew", True
    return WorkerLine(error=first_line(error), hint=hint, transient=transient)


def download(job: BucketJob) -> WorkerLine:
    bucket = open_bucket(job.provider, job.region, job.bucket, job.endpoint)
    return BucketDownload(job, bucket).run()


def main() -> int:
    return run_job(BucketJob, download, explain)


def _identity(files: tuple[SourceFile, ...]) -> bytes:
    return msgspec.json.encode(files)


def _is_there(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
