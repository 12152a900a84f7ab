"""Worker `python -m runtime.agent.modelscope`: one ModelScope repository, by ModelScope's own client.

Reads a ModelScopeJob from stdin. The client resumes the partial file of a killed worker and checks each file against
the SHA-256 that the hub lists. The hub lists no commit for a branch, so the files' own digests are the revision: a
branch that moves meanwhile cannot mix two models, it fails the check and is listed anew.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from runtime.agent.download import (
    DownloadError,
    Meter,
    Record,
    SourceFile,
    check_space,
    explain_common,
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
    from modelscope_hub import HubApi

PARALLEL = 4  # files at a time
READ_BLOCK = 65536
HUB = "https://modelscope.cn"
# The client gives each file an hour by default; time alone is no reason to give up.
NO_TIME_LIMIT = {"MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT": str(30 * 86400)}
SPACE_HINT = "free space there, or choose a larger disk; what has come is kept"
NETWORK_HINT = "check the network and proxy; what has come is kept, and it is tried again"
_COMMIT = re.compile(r"[0-9a-f]{40}")


class ModelScopeJob(Struct, frozen=True):
    """What the worker reads from stdin. The token never stands in a command line, environment or file."""

    repo: str
    revision: str
    folder: str
    record: str
    endpoint: str | None = None
    token: str | None = None


class ModelScopeDownload:
    """One job from listing to record."""

    def __init__(self, job: ModelScopeJob) -> None:
        self._job = job
        self._files: tuple[SourceFile, ...] = ()
        self._folder = Path(job.folder)

    def run(self) -> WorkerLine:
        job = self._job
        api = connect(job)
        try:
            files = self._list(api)
        except Exception as error:
            kept = read_record(Path(job.record))
            if explain(error, job).transient and kept is not None and kept.is_complete():
                print(f"{first_line(error)}; using the files of {kept.commit}", file=sys.stderr)
                return WorkerLine(path=kept.path, revision=kept.commit)
            raise
        digest = hashlib.sha256(msgspec.json.encode(files)).hexdigest()[:16]
        commit = job.revision if _COMMIT.fullmatch(job.revision) else f"files-{digest}"
        if kept := kept_record(Path(job.record), commit, files):
            return WorkerLine(path=kept.path, revision=commit)
        self._files, self._folder = files, Path(job.folder) / digest
        total = sum(file.size for file in files)
        check_space(self._folder, total - self.present(), SPACE_HINT)
        with Meter(self, total), ThreadPoolExecutor(PARALLEL) as pool:
            try:
                for future in [pool.submit(self._fetch, api, file) for file in files]:
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return write_record(Path(job.record), Record(commit=commit, path=str(self._folder), files=files))

    def present(self) -> int:
        return sum(min(file.size, self._size(file.name)) for file in self._files)

    def moved(self) -> int:
        """Blocks that this process has read: before it resumes, the client reads what is there to hash it.

        In blocks, because looking reads some bytes too, and those must not pass for a download that moves.
        """
        text = Path("/proc/self/io").read_text()
        return int(text.partition("rchar:")[2].split()[0]) // READ_BLOCK

    def _list(self, api: HubApi) -> tuple[SourceFile, ...]:
        job = self._job
        found = {file.path: file for file in api.list_repo_files(job.repo, "model", revision=job.revision)}
        names = choose_files([name for name, file in found.items() if not file.is_dir])
        unknown = [name for name in names if not found[name].sha256]
        if unknown:
            raise DownloadError(f"the hub lists no SHA-256 for {unknown[0]}", "choose another source for this model")
        return tuple(
            SourceFile(name=name, size=found[name].size, blob=str(found[name].sha256), sha256=found[name].sha256)
            for name in sorted(names)
        )

    def _fetch(self, api: HubApi, file: SourceFile) -> None:
        if _bytes(self._folder / file.name) == file.size:
            return  # the client gives a file its name only after the check
        api.download_file(
            self._job.repo,
            "model",
            file.name,
            revision=self._job.revision,
            local_dir=self._folder,
            expected_sha256=file.sha256,
            file_size=file.size,
        )

    def _size(self, name: str) -> int:
        """Finished, or as far as the client's partial file goes."""
        return max(_bytes(self._folder / name), _bytes(self._folder / f"{name}.incomplete"))


def connect(job: ModelScopeJob) -> HubApi:
    """A client with this job's token or none: a login of the user's own must not travel to a mirror.

    Raises DownloadError when the client is not installed.
    """
    for name, value in NO_TIME_LIMIT.items():
        os.environ.setdefault(name, value)
    try:
        from modelscope_hub import HubApi, HubConfig
    except ImportError:
        raise DownloadError(
            "ModelScope's client is not installed", "run: pip install 'deployctl[modelscope]', or use hf:org/name"
        ) from None
    own = Path(job.folder) / ".modelscope"  # its locks and its install id
    return HubApi(HubConfig(endpoint=job.endpoint, token=job.token or "", cache_dir=own, config_dir=own))


def explain(error: Exception, job: ModelScopeJob) -> WorkerLine:
    """An exception of the client, its HTTP library or the disk, for a person."""
    if common := explain_common(error):
        return common
    import requests
    from modelscope_hub import errors

    hub = job.endpoint or os.environ.get("MODELSCOPE_ENDPOINT") or HUB
    if isinstance(error, errors.NotExistError):
        return WorkerLine(
            error=f"{job.repo} or its revision {job.revision!r} does not exist on {hub}, or is private",
            hint=f"see {hub}/models/{job.repo}; for a private repository set hub_token",
        )
    if isinstance(error, errors.AuthenticationError | errors.PermissionDeniedError):
        return WorkerLine(
            error=f"{hub} refuses access to {job.repo}",
            hint=f"accept its terms at {hub}/models/{job.repo}, and set hub_token to a token of that account",
        )
    if isinstance(error, errors.FileIntegrityError):
        return WorkerLine(
            error=f"a file arrives different from what the hub lists: {first_line(error)}",
            hint="it is listed anew; if this stays, a proxy changes files",
            transient=True,
        )
    if isinstance(error, errors.HubError):
        busy = isinstance(
            error, errors.NetworkError | errors.ServerError | errors.RateLimitError | errors.FileDownloadError
        )
        return WorkerLine(error=f"{hub}: {first_line(error)}", hint=NETWORK_HINT, transient=busy)
    if isinstance(error, OSError | requests.RequestException):
        said = f"no connection to {hub}: {first_line(error)}"
        return WorkerLine(error=said, hint=NETWORK_HINT, transient=True)
    return WorkerLine(error=f"{type(error).__name__}: {first_line(error)}", hint="see `deployctl logs agent`")


def main() -> int:
    return run_job(ModelScopeJob, lambda job: ModelScopeDownload(job).run(), explain)


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
