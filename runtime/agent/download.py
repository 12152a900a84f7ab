"""What the download workers share: the job's frame, progress, room on the disk, and the record of a finished download.

A worker reads its job from stdin and writes WorkerLines to stdout (worker.py).
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

import msgspec

from runtime.agent.worker import WorkerLine, emit
from runtime.deployment import Struct
from runtime.mailbox import write_atomic
from runtime.model_files import UnservableError

SAMPLE_S = 0.5
HASH_CHUNK = 8 * 2**20
T = TypeVar("T")


class DownloadError(Exception):
    """Why the download cannot go on, for a person."""

    def __init__(self, error: str, hint: str, *, transient: bool = False) -> None:
        super().__init__(error)
        self.line = WorkerLine(error=error, hint=hint, transient=transient)


class SourceFile(Struct, frozen=True):
    """`blob`: the source's own id of the content (an ETag, a git id); `sha256` where the source lists one."""

    name: str
    size: int
    blob: str
    sha256: str | None = None


class Record(Struct, frozen=True):
    """A finished, verified download of one commit; kept in our cache, one per source and revision."""

    commit: str
    path: str
    files: tuple[SourceFile, ...]

    def is_complete(self) -> bool:
        root = Path(self.path)
        try:
            return all((root / file.name).stat().st_size == file.size for file in self.files)
        except OSError:
            return False


def read_record(path: Path) -> Record | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def kept_record(path: Path, commit: str, files: tuple[SourceFile, ...]) -> Record | None:
    """The record, if it is of just these files and they are all there."""
    kept = read_record(path)
    if kept is not None and kept.commit == commit and kept.files == files and kept.is_complete():
        return kept
    return None


def write_record(path: Path, record: Record) -> WorkerLine:
    write_atomic(path, msgspec.json.encode(record))
    return WorkerLine(path=record.path, revision=record.commit)


class Gauge(Protocol):
    """What a running download can be asked at any time, from another thread."""

    def present(self) -> int:
        """Bytes on disk, finished or on their way."""
        ...

    def moved(self) -> int:
        """Grows with every byte that is written or checked."""
        ...


class Meter:
    """Writes progress every SAMPLE_S seconds while a `with` block runs, and once at its end."""

    def __init__(self, gauge: Gauge, total: int, each: Callable[[], None] | None = None) -> None:
        self._gauge = gauge
        self._total = total
        self._each = each
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        emit(WorkerLine(bytes=self._gauge.present(), total=self._total))

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_S):
            if self._each is not None:
                self._each()
            emit(WorkerLine(bytes=self._gauge.present(), total=self._total, moved=self._gauge.moved()))


def check_space(folder: Path, need: int, hint: str) -> None:
    """Room for `need` more bytes on the disk of `folder`, which is made. Raises DownloadError."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise DownloadError(f"disk full: {need} bytes are still to come, {free} are free in {folder}", hint)


def file_digest(path: Path, algorithm: str, seen: Callable[[int], None]) -> str:
    """Hex digest by one of hashlib's algorithms. `seen` is called with each number of bytes read."""
    digest = hashlib.new(algorithm)
    with open(path, "rb") as data:
        while chunk := data.read(HASH_CHUNK):
            digest.update(chunk)
            seen(len(chunk))
    return digest.hexdigest()


def explain_common(error: Exception) -> WorkerLine | None:
    """What any source may raise; None when it is the source's own to explain."""
    if isinstance(error, DownloadError):
        return error.line
    if isinstance(error, UnservableError):
        return WorkerLine(error=str(error), hint=error.hint)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return WorkerLine(
            error=f"disk full while writing {error.filename or 'weights'}",
            hint="free space on that disk, or choose a larger one; what is there is kept",
        )
    return None


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def run_job(kind: type[T], work: Callable[[T], WorkerLine], explain: Callable[[Exception, T], WorkerLine]) -> int:
    """The whole of a worker: job from stdin, result or failure as the last line. Returns the exit code."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=kind)
    emit(WorkerLine(moved=0))
    try:
        emit(work(job))
    except Exception as error:
        emit(explain(error, job))
        return 1
    return 0
