"""Weights from a bucket: the real worker and the real SDKs against a store that counts every byte it serves."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from agent_machine import ROOT, a_deployment, wait_for

from runtime.agent import bucket_source
from runtime.agent.bucket_source import BucketDownload, BucketJob, explain
from runtime.agent.ranges import PartFile
from runtime.agent.status import PhaseError, Progress
from runtime.agent.weights import Caches, missing_bytes, prepare_weights, worker_for
from runtime.agent.worker import WorkerLine
from runtime.bucket import open_bucket
from runtime.deployment import ModelSource, Predicted, Weights, encode
from runtime.model_files import MANIFEST, Manifest, ManifestFile
from runtime.vm import Provider, Vm
from tests.lab.object_store import OWNER, ObjectStore, vm_role

REGION = "cn-hangzhou"
BUCKET = "some-weights"
MAILBOX = "a-mailbox"
PREFIX = "models/tiny"
COMMIT = "c0ffee" + "0" * 34
BIG = "model.safetensors"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    BIG: random.Random(5).randbytes(6_000_000),
    "README.md": b"words",
    "pytorch_model.bin": b"pickle",
    "checkpoint-10/model.safetensors": b"an older one",
}
WANTED = {"config.json", "tokenizer.json", BIG}
BOTH = pytest.mark.parametrize("provider", ["aws", "alicloud"])


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def nothing(_: Progress) -> None:
    """A report that nobody reads."""


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    role = vm_role((f"{PREFIX}/",))
    with ObjectStore(REGION, (OWNER, role)) as store:
        store.create_bucket(BUCKET)
        store.create_bucket(MAILBOX)
        for name, data in FILES.items():
            store.put(BUCKET, f"{PREFIX}/{name}", data)
        yield store


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Caches:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name, value in vm_role().environment().items():
        monkeypatch.setenv(name, value)
    return Caches(tmp_path / "models", tmp_path / "hub")


@pytest.fixture
def vm_file(tmp_path: Path) -> Path:
    return tmp_path / "vm.json"


def source_of(provider: Provider) -> str:
    return f"{'s3' if provider == 'aws' else 'oss'}://{BUCKET}/{PREFIX}"


def from_bucket(
    store: ObjectStore, provider: Provider, caches: Caches, vm_file: Path, report: Callable[[Progress], None] = nothing
) -> Weights:
    vm = Vm(name="demo", provider=provider, region=REGION, bucket=MAILBOX, endpoint=store.url(MAILBOX))
    vm_file.write_bytes(encode(vm))
    model = ModelSource(source=source_of(provider), served_name="tiny")
    return prepare_weights(model, caches, report, vm_file=vm_file)


def a_job(store: ObjectStore, caches: Caches, provider: Provider = "aws") -> BucketJob:
    folder = caches.models / "bucket-x"
    return BucketJob(
        provider=provider,
        region=REGION,
        bucket=BUCKET,
        prefix=PREFIX,
        folder=str(folder),
        record=f"{folder}.json",
        endpoint=store.url(BUCKET),
    )


def download(job: BucketJob) -> WorkerLine:
    """In this process: what the worker does between its first and its last line."""
    bucket = open_bucket(job.provider, job.region, job.bucket, job.endpoint)
    try:
        return BucketDownload(job, bucket).run()
    except Exception as error:
        return explain(error, job)


def put_manifest(store: ObjectStore, files: dict[str, bytes] | None = None) -> None:
    entries = tuple(
        ManifestFile(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in (files or FILES).items()
        if name in WANTED
    )
    manifest = Manifest(source="hf:acme/tiny", commit=COMMIT, files=entries)
    store.put(BUCKET, f"{PREFIX}/{MANIFEST}", msgspec.json.encode(manifest))


def ranges_of(store: ObjectStore, name: str = BIG) -> list[tuple[int, int]]:
    return store.served[f"{BUCKET}/{PREFIX}/{name}"]


@BOTH
def test_the_machines_role_fetches_what_serving_needs_and_nothing_else(
    store: ObjectStore, provider: Provider, caches: Caches, vm_file: Path
) -> None:
    seen: list[Progress] = []
    weights = from_bucket(store, provider, caches, vm_file, seen.append)
    assert {path.name for path in Path(weights.path).iterdir()} == WANTED
    assert all((Path(weights.path) / name).read_bytes() == FILES[name] for name in WANTED)
    assert {request.access_key for request in store.requests} == {"AKROLE"}
    assert seen[-1].percent == 100.0


@BOTH
def test_a_second_deployment_fetches_nothing(
    store: ObjectStore, provider: Provider, caches: Caches, vm_file: Path
) -> None:
    first = from_bucket(store, provider, caches, vm_file)
    served = sum(map(len, store.served.values()))
    assert from_bucket(store, provider, caches, vm_file) == first
    assert sum(map(len, store.served.values())) == served
    assert missing_bytes(a_deployment("r", source_of(provider)), caches, None) == 0


@BOTH
def test_a_killed_worker_is_taken_up_without_fetching_a_noted_range_again(
    store: ObjectStore, provider: Provider, caches: Caches
) -> None:
    store.faults.bytes_per_s = 3_000_000
    job = a_job(store, caches, provider)
    folder = Path(job.folder)
    argv = [sys.executable, "-m", "runtime.agent.bucket_source"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=ROOT)
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(job))
    process.stdin.close()

    def noted() -> str | None:
        found = list(folder.glob(f"*/{BIG}.ranges"))
        text = found[0].read_text() if found else ""
        return text if len(text.splitlines()) > 2 else None

    wait_for(noted, "two notes")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    on_disk = [tuple(map(int, line.split())) for line in (noted() or "").splitlines()[1:]]
    wait_for(lambda: bool(ranges_of(store)), "the cut connection is noticed")
    store.faults.bytes_per_s = None
    before = len(ranges_of(store))
    assert download(job).path is not None
    after = ranges_of(store)[before:]
    assert not [pair for pair in after for start, end in on_disk if pair[0] < end and start < pair[1]]
    (path,) = folder.glob(f"*/{BIG}")
    assert path.read_bytes() == FILES[BIG]


def test_a_cut_connection_goes_on_at_the_next_byte(store: ObjectStore, caches: Caches) -> None:
    store.faults.cut_after = 2_000_000
    assert download(a_job(store, caches)).path is not None
    assert store.served_again(BUCKET, f"{PREFIX}/{BIG}") == 0
    assert len(ranges_of(store)) == 3


def test_large_files_come_in_parallel_ranges(
    store: ObjectStore, caches: Caches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_source, "RANGE_BYTES", 1_000_000)
    assert download(a_job(store, caches)).path is not None
    assert sorted(ranges_of(store)) == [(start, start + 1_000_000) for start in range(0, 6_000_000, 1_000_000)]


def test_a_pushed_model_has_its_commit_and_is_checked_against_its_manifest(store: ObjectStore, caches: Caches) -> None:
    put_manifest(store)
    assert download(a_job(store, caches)).revision == COMMIT
    put_manifest(store, FILES | {BIG: bytes(6_000_000)})
    line = download(a_job(store, Caches(caches.models / "again", caches.hub)))
    assert "arrives different from its sha256, twice" in (line.error or "")
    assert not line.transient


@BOTH
def test_without_a_manifest_the_stores_own_checksum_finds_damage(
    store: ObjectStore, provider: Provider, caches: Caches
) -> None:
    store.faults.damaged.add(f"{PREFIX}/{BIG}")
    line = download(a_job(store, caches, provider))
    assert "arrives different from its" in (line.error or "")
    assert store.bytes_served(BUCKET, f"{PREFIX}/{BIG}") == 2 * len(FILES[BIG])


def test_a_push_that_is_not_whole_is_refused(store: ObjectStore, caches: Caches) -> None:
    put_manifest(store)
    del store.buckets[BUCKET][f"{PREFIX}/{BIG}"]
    line = download(a_job(store, caches))
    assert f"{BIG} is missing" in (line.error or "")
    assert "weights push" in (line.hint or "")


def test_a_new_content_of_the_bucket_gets_a_folder_of_its_own(store: ObjectStore, caches: Caches) -> None:
    first = download(a_job(store, caches))
    store.put(BUCKET, f"{PREFIX}/{BIG}", b"fine-tuned")
    second = download(a_job(store, caches))
    assert second.revision != first.revision
    assert (Path(second.path or "") / BIG).read_bytes() == b"fine-tuned"
    assert (Path(first.path or "") / BIG).read_bytes() == FILES[BIG]


def test_what_was_fetched_serves_while_the_store_is_away(
    store: ObjectStore, caches: Caches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.s3.ATTEMPTS", 1)
    first = download(a_job(store, caches))
    store.faults.busy = 100
    assert download(a_job(store, caches)) == first


def test_a_role_without_the_right_is_told_which_right_it_lacks(store: ObjectStore, caches: Caches) -> None:
    store.credentials["AKROLE"] = vm_role()
    line = download(a_job(store, caches))
    assert "AccessDenied" in (line.error or "")
    assert f"s3://{BUCKET}/{PREFIX}" in (line.hint or "")
    assert not line.transient


@pytest.mark.parametrize("name", ["config.json", BIG])
def test_a_prefix_that_is_no_model_is_refused_with_what_it_lacks(store: ObjectStore, caches: Caches, name: str) -> None:
    del store.buckets[BUCKET][f"{PREFIX}/{name}"]
    line = download(a_job(store, caches))
    assert name.replace("model", "*") in (line.error or "")


def test_an_empty_prefix_names_how_to_fill_it(store: ObjectStore, caches: Caches) -> None:
    store.buckets[BUCKET].clear()
    line = download(a_job(store, caches))
    assert line.error == f"there is nothing under s3://{BUCKET}/{PREFIX}"
    assert "deployctl weights push" in (line.hint or "")


def test_a_full_disk_is_known_before_the_first_byte(
    store: ObjectStore, caches: Caches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(total=1, used=1, free=1000))
    line = download(a_job(store, caches))
    assert "disk full: 6000025 bytes are still to come, 1000 are free" in (line.error or "")
    assert ranges_of(store) == []


def test_what_is_on_the_disk_is_not_asked_for_again_by_the_disk_gate(store: ObjectStore, caches: Caches) -> None:
    """A machine that was killed late in a download has no room for the whole model again, and needs none."""
    deployment = msgspec.structs.replace(
        a_deployment("r", source_of("aws")),
        predicted=Predicted(weights_bytes=6_000_000, kv_bytes_per_token=1, kv_blocks=1, activation_bytes=1),
    )
    assert missing_bytes(deployment, caches, None) == 6_000_000
    worker = worker_for(deployment.model, caches)
    part = PartFile(worker.partial / "content" / BIG, 6_000_000, "etag")
    part.write(2_000_000, FILES[BIG][:4_000_000])
    part.close()
    assert missing_bytes(deployment, caches, None) == pytest.approx(2_000_000, abs=20_000)


def test_another_clouds_bucket_is_refused(store: ObjectStore, caches: Caches, vm_file: Path) -> None:
    from_bucket(store, "aws", caches, vm_file)
    model = ModelSource(source=source_of("alicloud"), served_name="x")
    with pytest.raises(PhaseError, match="is not a bucket of aws"):
        prepare_weights(model, caches, nothing, vm_file=vm_file)
