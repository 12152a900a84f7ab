"""Worker `python -m runtime.agent.hub`: one Hugging Face repository into huggingface_hub's cache.

Reads a HubJob from stdin and writes WorkerLines to stdout (see worker.py). The revision is resolved to a
commit first, so that a branch that moves meanwhile cannot mix two models. Only safetensors, JSON and
tokenizer files are fetched: no pickle, no code. Large files are checked against the SHA-256 that the hub
lists. Finished files are never fetched again, and a cut connection goes on where it stopped; a partial file
of a killed worker begins anew.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from runtime.agent.weights import HubFile, HubJob, HubManifest, read_manifest
from runtime.agent.worker import WorkerLine
from runtime.mailbox import write_atomic

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

PARALLEL = 4  # files at a time
SAMPLE_S = 0.5
ORPHAN_AGE_S = 3600.0  # a partial file untouched for so long belongs to nobody
HASH_CHUNK = 8 * 2**20
WRITE_CHUNK = 2**19  # bytes
NETWORK_HINT = "check the network and proxy; in mainland China set hub_endpoint to a mirror"
HTTP_CLIENTS = ("httpx", "httpx2", "httpcore", "requests")  # what huggingface_hub has used, by version
_SUFFIXES = (".safetensors", ".json", ".jinja")
_NAMES = ("tokenizer.model", "merges.txt", "vocab.txt")
_DUPLICATES = "consolidated"  # Mistral's second copy of the same weights


class HubError(Exception):
    """Why the download cannot go on, for a person."""

    def __init__(self, error: str, hint: str, *, transient: bool = False) -> None:
        super().__init__(error)
        self.line = WorkerLine(error=error, hint=hint, transient=transient)


def choose_files(names: list[str]) -> list[str]:
    """The files of a repository that serving needs. Raises HubError when it cannot be served."""
    chosen = [
        name
        for name in names
        if "/" not in name and (name.endswith(_SUFFIXES) or name in _NAMES) and not name.startswith((_DUPLICATES, "."))
    ]
    for need in ("config.json", "tokenizer.json"):
        if need not in chosen:
            raise HubError(f"the repository has no {need}", "choose a model in Hugging Face's layout")
    if not any(name.endswith(".safetensors") for name in chosen):
        raise HubError(
            "the repository has no *.safetensors file",
            "pickle weights (.bin, .pt) are not read; choose another",
        )
    return chosen


class Download:
    """One job from resolve to manifest. `moved` grows with every byte that is written or checked."""

    def __init__(self, job: HubJob) -> None:
        self._job = job
        self._started = time.time()
        self._checked = 0
        self._folder = Path(job.cache) / f"models--{job.repo.replace('/', '--')}"
        # A token of the user's own login must not travel to a mirror: only the one that was given for it.
        self._token = job.token or (False if job.endpoint else None)

    def run(self) -> WorkerLine:
        info = self._resolve()
        if info is None:
            kept = read_manifest(Path(self._job.manifest))
            assert kept is not None
            return WorkerLine(path=kept.path, revision=kept.commit)
        commit = str(info.sha)
        files = _listed(info)
        snapshot = self._folder / "snapshots" / commit
        kept = read_manifest(Path(self._job.manifest))
        if kept is not None and kept.commit == commit and kept.files == files and kept.is_complete():
            return WorkerLine(path=kept.path, revision=commit)
        self._remove_orphans()
        self._check_space(commit, files)
        done = threading.Event()
        sampler = threading.Thread(target=self._sample, args=(commit, files, done), daemon=True)
        sampler.start()
        try:
            with ThreadPoolExecutor(PARALLEL) as pool:
                for future in [pool.submit(self._fetch, commit, file) for file in files]:
                    future.result()
        finally:
            done.set()
            sampler.join()
        manifest = HubManifest(commit=commit, path=str(snapshot), files=files)
        write_atomic(Path(self._job.manifest), msgspec.json.encode(manifest))
        return WorkerLine(path=str(snapshot), revision=commit)

    def _resolve(self) -> ModelInfo | None:
        """None when the hub cannot be reached but an earlier download of this revision is complete."""
        from huggingface_hub import HfApi

        job = self._job
        try:
            api = HfApi(endpoint=job.endpoint, token=self._token)
            return api.model_info(job.repo, revision=job.revision, files_metadata=True)
        except Exception as error:
            line = explain(error, job)
            kept = read_manifest(Path(job.manifest))
            if line.transient and kept is not None and kept.is_complete():
                print(f"{line.error}; using the files of commit {kept.commit}", file=sys.stderr)
                return None
            raise

    def _fetch(self, commit: str, file: HubFile) -> None:
        """Downloads and verifies one file; a wrong one is fetched once more."""
        from huggingface_hub import hf_hub_download

        for attempt in (1, 2):
            path = Path(
                hf_hub_download(
                    self._job.repo,
                    file.name,
                    revision=commit,
                    cache_dir=self._job.cache,
                    endpoint=self._job.endpoint,
                    token=self._token,
                    force_download=attempt == 2,
                )
            )
            if path.stat().st_size == file.size and (file.sha256 is None or self._digest(path) == file.sha256):
                return
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        raise HubError(
            f"{file.name} arrives different from what the hub lists (size or SHA-256), twice",
            "the mirror or a proxy changes files; set another hub_endpoint",
        )

    def _digest(self, path: Path) -> str:
        digest = hashlib.sha256()
        with open(path, "rb") as data:
            while chunk := data.read(HASH_CHUNK):
                digest.update(chunk)
                self._checked += len(chunk)
        return digest.hexdigest()

    def _check_space(self, commit: str, files: tuple[HubFile, ...]) -> None:
        need = sum(file.size for file in files) - self._present(commit, files)
        self._folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder).free
        if need > free:
            raise HubError(
                f"disk full: {need} bytes are still to come, {free} are free in {self._job.cache}",
                "free space there, or set HF_HOME to a larger disk; finished files are kept",
            )

    def _present(self, commit: str, files: tuple[HubFile, ...]) -> int:
        """Bytes on disk, finished or on their way."""
        blobs = self._folder / "blobs"
        total = 0
        for file in files:
            pointer = self._folder / "snapshots" / commit / file.name
            parts = (p for p in blobs.glob(f"{file.blob}*.incomplete") if _mtime(p) >= self._started - 1)
            found = [_size(pointer), _size(blobs / file.blob), *(_size(part) for part in parts)]
            total += min(file.size, max(found))
        return total

    def _sample(self, commit: str, files: tuple[HubFile, ...], done: threading.Event) -> None:
        total = sum(file.size for file in files)
        while not done.wait(SAMPLE_S):
            present = self._present(commit, files)
            emit(WorkerLine(bytes=present, total=total, moved=present + self._checked))
        emit(WorkerLine(bytes=self._present(commit, files), total=total))

    def _remove_orphans(self) -> None:
        """The client names each partial file anew, so one that a killed process left is never finished."""
        for part in (self._folder / "blobs").glob("*.incomplete"):
            if _mtime(part) < time.time() - ORPHAN_AGE_S:
                part.unlink(missing_ok=True)


def explain(error: Exception, job: HubJob) -> WorkerLine:
    """An exception of huggingface_hub, its HTTP client or the disk, for a person."""
    from huggingface_hub import errors

    hub = job.endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if isinstance(error, HubError):
        return error.line
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
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return WorkerLine(error=f"disk full while writing to {job.cache}", hint="free space, or set HF_HOME elsewhere")
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in HTTP_CLIENTS:
        said = f"no connection to {hub}: {_first_line(error)}"
        return WorkerLine(error=said, hint=NETWORK_HINT, transient=True)
    return WorkerLine(error=f"{type(error).__name__}: {_first_line(error)}", hint="see `deployctl logs agent`")


def emit(line: WorkerLine) -> None:
    """One write, so that lines of two threads cannot mix."""
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


def main() -> int:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=HubJob)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    emit(WorkerLine(moved=0))
    _write_small_chunks()
    if job.endpoint:
        # A mirror passes Xet's headers on, but the chunk servers they name are those of the original hub.
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    try:
        emit(Download(job).run())
    except Exception as error:
        emit(explain(error, job))
        return 1
    return 0


def _write_small_chunks() -> None:
    """The client writes 10 MiB at a time: on a slow line nothing would seem to move for minutes, and a connection
    that is cut sooner than that would never get on."""
    from huggingface_hub import constants

    constants.DOWNLOAD_CHUNK_SIZE = WRITE_CHUNK


def _listed(info: ModelInfo) -> tuple[HubFile, ...]:
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    files = []
    for name in choose_files(list(siblings)):
        sibling = siblings[name]
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        blob = sha256 or sibling.blob_id or ""
        files.append(HubFile(name=name, size=sibling.size or 0, blob=blob, sha256=sha256))
    return tuple(files)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


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
