"""Where `deployctl weights push` takes a model from: a hub's repository at one commit, or a folder of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from provision.errors import MissingPartError, UsageError
from provision.model_ref import ModelRef
from provision.model_source import ModelSourceError
from runtime.model_files import UnservableError, choose_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from modelscope_hub import HubApi

MAIN = "main"
MASTER = "master"  # ModelScope's name for it


@dataclass(frozen=True, slots=True)
class OriginFile:
    """`size` in bytes. `sha256` where the origin lists it; `blob`: its own id of the content, where it has one."""

    name: str
    size: int
    sha256: str | None = None
    blob: str | None = None


class Origin(Protocol):
    """One model at one revision. Methods raise ModelSourceError and OSError."""

    @property
    def source(self) -> str:
        """As a spec names it, without the revision."""
        ...

    @property
    def commit(self) -> str | None: ...

    @property
    def files(self) -> tuple[OriginFile, ...]:
        """What serving needs."""
        ...

    @property
    def keeps_files(self) -> bool:
        """Fetched files are the user's own and must not be deleted."""
        ...

    def fetch(self, file: OriginFile, folder: Path) -> Path: ...


class FolderOrigin:
    """A folder in Hugging Face's layout: a merged fine-tuned checkpoint, for example."""

    keeps_files = True
    commit = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.source = folder.name
        if not folder.is_dir():
            raise ModelSourceError(f"{folder} is not a folder", next_command=f"ls {folder.parent}")
        with _servable(str(folder)):
            names = choose_files([path.name for path in folder.iterdir() if path.is_file()], str(folder))
        self.files = tuple(OriginFile(name, (folder / name).stat().st_size) for name in sorted(names))

    def fetch(self, file: OriginFile, folder: Path) -> Path:
        return self._folder / file.name


class HubOrigin:
    """A Hugging Face repository, pinned to the commit that the revision names now."""

    keeps_files = False

    def __init__(self, ref: ModelRef, endpoint: str | None, token: str | None) -> None:
        from huggingface_hub import HfApi

        self._ref, self._endpoint = ref, endpoint
        # A login of the user's own must not travel to a mirror: only a token that was given for it.
        self._token = token or (False if endpoint else None)
        self.source = f"hf:{ref.location}"
        with _hub_words(ref), _servable(str(ref)):
            api: HfApi = HfApi(endpoint=endpoint, token=self._token)
            info = api.model_info(ref.location, revision=ref.revision or MAIN, files_metadata=True)
            self.commit: str | None = info.sha
            listed = {sibling.rfilename: sibling for sibling in info.siblings or []}
            self.files = tuple(
                OriginFile(
                    name,
                    listed[name].size or 0,
                    (lfs.sha256 if (lfs := listed[name].lfs) else None),
                    listed[name].blob_id,
                )
                for name in sorted(choose_files(list(listed)))
            )

    def fetch(self, file: OriginFile, folder: Path) -> Path:
        from huggingface_hub import hf_hub_download

        with _hub_words(self._ref):
            return Path(
                hf_hub_download(
                    self._ref.location,
                    file.name,
                    revision=self.commit,
                    local_dir=folder,
                    endpoint=self._endpoint,
                    token=self._token,
                )
            )


class ModelScopeOrigin:
    """A ModelScope repository; its client checks each file against the SHA-256 that the hub lists."""

    keeps_files = False

    def __init__(self, ref: ModelRef, endpoint: str | None, token: str | None, work: Path) -> None:
        try:
            from modelscope_hub import HubApi, HubConfig
        except ImportError:
            raise MissingPartError(
                "ModelScope's client is not installed", next_command="pip install 'deployctl[modelscope]'"
            ) from None
        self._ref, self._revision = ref, ref.revision or MASTER
        own = work / ".modelscope"
        self._api: HubApi = HubApi(HubConfig(endpoint=endpoint, token=token or "", cache_dir=own, config_dir=own))
        self.source = f"modelscope:{ref.location}"
        self.commit = ref.revision
        with _hub_words(ref), _servable(str(ref)):
            listed = {
                file.path: file for file in self._api.list_repo_files(ref.location, "model", revision=self._revision)
            }
            names = choose_files([name for name, file in listed.items() if not file.is_dir])
        self.files = tuple(OriginFile(name, listed[name].size, listed[name].sha256) for name in sorted(names))

    def fetch(self, file: OriginFile, folder: Path) -> Path:
        with _hub_words(self._ref):
            return self._api.download_file(
                self._ref.location,
                "model",
                file.name,
                revision=self._revision,
                local_dir=folder,
                expected_sha256=file.sha256,
                file_size=file.size,
            )


def open_origin(ref: ModelRef, *, endpoint: str | None, token: str | None, work: Path) -> Origin:
    """`work`: a folder for what a client keeps. Raises ModelSourceError, MissingPartError, UsageError."""
    if ref.kind == "folder":
        return FolderOrigin(Path(ref.location).expanduser().resolve())
    if ref.kind == "hf":
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        return HubOrigin(ref, endpoint, token)
    if ref.kind == "modelscope":
        os.environ.setdefault("TQDM_DISABLE", "1")
        return ModelScopeOrigin(ref, endpoint, token, work)
    raise UsageError(
        f"{ref} cannot be pushed",
        why="a push goes from a hub or a folder into a bucket",
        next_command="deployctl weights push Qwen/Qwen2.5-7B-Instruct s3://my-bucket/qwen",
    )


@contextmanager
def _servable(place: str) -> Iterator[None]:
    try:
        yield
    except UnservableError as error:
        raise ModelSourceError(f"{place} cannot be served", why=f"{error}; {error.hint}") from None


@contextmanager
def _hub_words(ref: ModelRef) -> Iterator[None]:
    """Errors of either hub's client or its HTTP library; a full disk stays an OSError."""
    try:
        yield
    except (UnservableError, ModelSourceError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelSourceError(
            f"{ref} cannot be fetched", why=line, next_command="the same command goes on where it stopped"
        ) from error
