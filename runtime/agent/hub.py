"""Worker `python -m runtime.agent.hub`: one Hugging Face repository into huggingface_hub's cache.

Reads a HubJob from stdin and writes WorkerLines to stdout (see worker.py). The revision is resolved to a
commit first, so that a branch that moves meanwhile cannot mix two models. Only safetensors, JSON and
tokenizer files are fetched: no pickle, no code. Large files are checked against the SHA-256 that the hub
lists. Finished files are never fetched again, and a cut connection goes on where it stopped; a partial file
of a killed worker begins anew.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.agent.download import (
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
from runtime.agent.worker import WorkerLine
from runtime.deployment import Struct
from runtime.model_files import choose_files

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

PARALLEL = 4  # files at a time
ORPHAN_AGE_S = 3600.0  # a partial file untouched for so long belongs to nobody
WRITE_CHUNK = 2**19  # bytes
NETWORK_HINT = "check the network and proxy; in mainland China set hub_endpoint to a mirror"
SPACE_HINT = "free space there, or set HF_HOME to a larger disk; finished files are kept"
HTTP_CLIENTS = ("httpx", "httpx2", "httpcore", "requests")  # what huggingface_hub has used, by version


class HubJob(Struct, frozen=True):
    """What the worker reads from stdin. The token never stands in a command line, environment or file."""

    repo: str
    revision: str
    cache: str
    record: str
    endpoint: str | None = None
    token: str | None = None


class Download:
    """One job from resolve to record."""

    def __init__(self, job: HubJob) -> None:
        self._job = job
        self._started = time.time()
        self._checked = 0
        self._commit = ""
        self._files: tuple[SourceFile, ...] = ()
        self._folder = Path(job.cache) / f"models--{job.repo.replace('/', '--')}"
        # A token of the user's own login must not travel to a mirror: only the one that was given for it.
        self._token = job.token or (False if job.endpoint else None)

    def run(self) -> WorkerLine:
        info = self._resolve()
        if info is None:
            kept = read_record(Path(self._job.record))
            assert kept is not None
            return WorkerLine(path=kept.path, revision=kept.commit)
        commit = str(info.sha)
        files = _listed(info)
        if kept := kept_record(Path(self._job.record), commit, files):
            return WorkerLine(path=kept.path, revision=commit)
        self._commit, self._files = commit, files
        self._remove_orphans()
        total = sum(file.size for file in files)
        check_space(self._folder, total - self.present(), SPACE_HINT)
        with Meter(self, total), ThreadPoolExecutor(PARALLEL) as pool:
            for future in [pool.submit(self._fetch, file) for file in files]:
                future.result()
        snapshot = self._folder / "snapshots" / commit
        return write_record(Path(self._job.record), Record(commit=commit, path=str(snapshot), files=files))

    def present(self) -> int:
        """Bytes on disk, finished or on their way."""
        blobs = self._folder / "blobs"
        total = 0
        for file in self._files:
            pointer = self._folder / "snapshots" / self._commit / file.name
            parts = (p for p in blobs.glob(f"{file.blob}*.incomplete") if _mtime(p) >= self._started - 1)
            found = [_size(pointer), _size(blobs / file.blob), *(_size(part) for part in parts)]
            total += min(file.size, max(found))
        return total

    def moved(self) -> int:
        return self.present() + self._checked

    def _resolve(self) -> ModelInfo | None:
        """None when the hub cannot be reached but an earlier download of this revision is complete."""
        from huggingface_hub import HfApi

        job = self._job
        try:
            api = HfApi(endpoint=job.endpoint, token=self._token)
            return api.model_info(job.repo, revision=job.revision, files_metadata=True)
        except Exception as error:
            line = explain(error, job)
            kept = read_record(Path(job.record))
            if line.transient and kept is not None and kept.is_complete():
                print(f"{line.error}; using the files of commit {kept.commit}", file=sys.stderr)
                return None
            raise

    def _fetch(self, file: SourceFile) -> None:
        """Downloads and verifies one file; a wrong one is fetched once more."""
        from huggingface_hub import hf_hub_download

        for attempt in (1, 2):
            path = Path(
                hf_hub_download(
                    self._job.repo,
                    file.name,
                    revision=self._commit,
                    cache_dir=self._job.cache,
                    endpoint=self._job.endpoint,
                    token=self._token,
                    force_download=attempt == 2,
                )
            )
            if path.stat().st_size == file.size and self._is_right(path, file):
                return
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        raise DownloadError(
            f"{file.name} arrives different from what the hub lists (size or SHA-256), twice",
            "the mirror or a proxy changes files; set another hub_endpoint",
        )

    def _is_right(self, path: Path, file: SourceFile) -> bool:
        return file.sha256 is None or file_digest(path, "sha256", self._saw) == file.sha256

    def _saw(self, count: int) -> None:
        self._checked += count

    def _remove_orphans(self) -> None:
        """The client names each partial file anew, so one that a killed process left is never finished."""
        for part in (self._folder / "blobs").glob("*.incomplete"):
            if _mtime(part) < time.time() - ORPHAN_AGE_S:
                part.unlink(missing_ok=True)


def explain(error: Exception, job: HubJob) -> WorkerLine:
    """An exception of huggingface_hub, its HTTP client or the disk, for a person."""
    from huggingface_hub import errors

    hub = job.endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if common := explain_common(error):
        return common
    if isinstance(error, errors.GatedRepoError):
        return WorkerLine(
            error=f"{job.repo} is gated",
            hint=f"accept its licence at {hub}/{job.repo}, then set hub_token to a token of that account",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return WorkerLine(
            error=f"{job.repo} has no revision {job.revision!r}",
            hint=f"see its branches at {hub}/{job.repo}/tree/main",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return WorkerLine(
            error=f"{job.repo} does not exist on {hub}, or is private",
            hint="check the name; for a private repository set hub_token",
        )
    if isinstance(error, errors.HFValidationError):
        return WorkerLine(error=f"{job.repo!r} is not a repository name", hint="write hf:org/name@revision")
    if isinstance(error, errors.HfHubHTTPError):
        code = error.response.status_code
        if code in (401, 403):
            return WorkerLine(error=f"{hub} refuses the token ({code})", hint="set hub_token to a valid one")
        busy = code >= 500 or code == 429
        return WorkerLine(error=f"{hub} answers {code}", hint=NETWORK_HINT, transient=busy)
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in HTTP_CLIENTS:
        said = f"no connection to {hub}: {first_line(error)}"
        return WorkerLine(error=said, hint=NETWORK_HINT, transient=True)
    return WorkerLine(error=f"{type(error).__name__}: {first_line(error)}", hint="see `deployctl logs agent`")


def download(job: HubJob) -> WorkerLine:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if job.endpoint:
        # A mirror passes Xet's headers on, but the chunk servers they name are those of the original hub.
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    _write_small_chunks()
    return Download(job).run()


def main() -> int:
    return run_job(HubJob, download, explain)


def _write_small_chunks() -> None:
    """The client writes 10 MiB at a time: on a slow line nothing would seem to move for minutes, and a connection
    that is cut sooner than that would never get on."""
    from huggingface_hub import constants

    constants.DOWNLOAD_CHUNK_SIZE = WRITE_CHUNK


def _listed(info: ModelInfo) -> tuple[SourceFile, ...]:
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    files = []
    for name in choose_files(list(siblings)):
        sibling = siblings[name]
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        blob = sha256 or sibling.blob_id or ""
        files.append(SourceFile(name=name, size=sibling.size or 0, blob=blob, sha256=sha256))
    return tuple(files)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


if __name__ == "__main__":
    sys.exit(main())
