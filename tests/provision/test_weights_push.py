"""`deployctl weights push` and `bundle`: real hub clients, pip and SDKs against a hub and a store on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from provision import bundle, weights_push
from provision.cli.app import app
from provision.errors import CloudError, DiskFullError, FailedError, UsageError
from provision.model_ref import parse_model
from provision.model_source import ModelSourceError
from provision.origins import Origin, OriginFile, open_origin
from provision.weights_push import Push, Pushed, PushProgress, bucket_problem
from provision.wheel import write_wheel
from runtime.bucket import Bucket, BucketError, open_bucket
from runtime.model_files import MANIFEST, PUSH_RECORD, decode_manifest
from runtime.vm import Provider
from tests.lab.object_store import OWNER, ObjectStore
from tests.lab.small_modelscope import ModelScopeHub
from tests.runtime.agent.local_hub import COMMIT, REPO, Hub

REGION = "us-east-1"
BUCKET = "some-weights"
PREFIX = "models/tiny"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model-00001-of-00002.safetensors": random.Random(1).randbytes(2_000_000),
    "model-00002-of-00002.safetensors": random.Random(2).randbytes(1_000_000),
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "pytorch_model.bin": b"pickle",
    "README.md": b"words",
}
WANTED = {name for name in FILES if name not in ("pytorch_model.bin", "README.md")}
BIG = "model-00001-of-00002.safetensors"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ObjectStore]:
    for name in ("HF_TOKEN", "HF_ENDPOINT", "MODELSCOPE_API_TOKEN", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in OWNER.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with ObjectStore(REGION) as store:
        host, port = store.address
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
        monkeypatch.setenv("OSS_ENDPOINT", f"http://{host}:{port}")
        store.create_bucket(BUCKET)
        yield store


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(dict(FILES)) as hub:
        yield hub


def opened(provider: Provider = "aws") -> Bucket:
    return open_bucket(provider, REGION, BUCKET)


def hub_origin(hub: Hub, tmp_path: Path) -> Origin:
    return open_origin(parse_model(f"hf:{REPO}"), endpoint=hub.endpoint, token=None, work=tmp_path / "work")


def push(origin: Origin, tmp_path: Path, bucket: Bucket | None = None) -> Pushed:
    return Push(origin, bucket or opened(), PREFIX, tmp_path / "files", lambda _: None).run()


def sent_keys(store: ObjectStore) -> list[str]:
    """Names of the model's files that were put, in their order."""
    puts = [r.key.removeprefix(f"{PREFIX}/") for r in store.requests if r.method == "PUT" and r.status == 200]
    return [name for name in puts if name in WANTED]


@pytest.mark.parametrize("provider", ["aws", "alicloud"])
def test_a_model_of_a_hub_is_in_the_bucket_with_its_commit_and_digests(
    store: ObjectStore, hub: Hub, tmp_path: Path, provider: Provider
) -> None:
    done = push(hub_origin(hub, tmp_path), tmp_path, opened(provider))
    assert (done.commit, done.files, done.skipped) == (COMMIT, len(WANTED), 0)
    assert set(store.keys(BUCKET)) == {f"{PREFIX}/{name}" for name in (*WANTED, MANIFEST)}
    manifest = decode_manifest(store.get(BUCKET, f"{PREFIX}/{MANIFEST}") or b"")
    assert (manifest.source, manifest.commit) == (f"hf:{REPO}", COMMIT)
    assert {file.name: file.sha256 for file in manifest.files} == {
        name: hashlib.sha256(FILES[name]).hexdigest() for name in WANTED
    }
    assert all(store.get(BUCKET, f"{PREFIX}/{name}") == FILES[name] for name in WANTED)
    assert not (tmp_path / "files").exists()


def test_a_second_push_fetches_and_sends_nothing(store: ObjectStore, hub: Hub, tmp_path: Path) -> None:
    push(hub_origin(hub, tmp_path), tmp_path)
    gets, sent = hub.gets.total(), len(sent_keys(store))
    done = push(hub_origin(hub, tmp_path), tmp_path)
    assert (done.skipped, done.sent) == (len(WANTED), 0)
    assert (hub.gets.total(), len(sent_keys(store))) == (gets, sent)


def test_a_push_that_broke_off_goes_on_with_what_is_missing(store: ObjectStore, hub: Hub, tmp_path: Path) -> None:
    hub.damaged.add("model-00002-of-00002.safetensors")
    with pytest.raises(ModelSourceError, match="arrives different"):
        push(hub_origin(hub, tmp_path), tmp_path)
    assert store.get(BUCKET, f"{PREFIX}/{MANIFEST}") is None
    assert store.get(BUCKET, f"{PREFIX}/{PUSH_RECORD}") is not None
    before = sent_keys(store)
    hub.damaged.clear()
    done = push(hub_origin(hub, tmp_path), tmp_path)
    assert done.skipped == len(before)
    assert sorted(sent_keys(store)) == sorted(WANTED)
    assert store.get(BUCKET, f"{PREFIX}/{PUSH_RECORD}") is None


def test_while_a_new_content_is_pushed_no_manifest_vouches_for_the_mixture(
    store: ObjectStore, hub: Hub, tmp_path: Path
) -> None:
    push(hub_origin(hub, tmp_path), tmp_path)
    hub.files[BIG] = random.Random(9).randbytes(2_000_000)
    manifests: list[bytes | None] = []

    def look(_: PushProgress) -> None:
        manifests.append(store.get(BUCKET, f"{PREFIX}/{MANIFEST}"))

    done = Push(hub_origin(hub, tmp_path), opened(), PREFIX, tmp_path / "files", look).run()
    assert done.skipped == len(WANTED) - 1
    assert set(manifests) == {None}
    assert store.get(BUCKET, f"{PREFIX}/{BIG}") == hub.files[BIG]


def test_an_object_of_another_size_is_sent_again(store: ObjectStore, hub: Hub, tmp_path: Path) -> None:
    push(hub_origin(hub, tmp_path), tmp_path)
    store.put(BUCKET, f"{PREFIX}/{BIG}", b"half")
    assert push(hub_origin(hub, tmp_path), tmp_path).skipped == len(WANTED) - 1
    assert store.get(BUCKET, f"{PREFIX}/{BIG}") == FILES[BIG]


def test_progress_ends_with_every_byte(store: ObjectStore, hub: Hub, tmp_path: Path) -> None:
    seen: list[PushProgress] = []
    Push(hub_origin(hub, tmp_path), opened(), PREFIX, tmp_path / "files", seen.append).run()
    assert [item.sent for item in seen] == sorted(item.sent for item in seen)
    assert seen[-1].sent == seen[-1].total == sum(len(FILES[name]) for name in WANTED)


class CountingOrigin:
    """Files of one kilobyte; notes how many lie on the disk when the next is fetched."""

    source, commit, keeps_files = "hf:acme/many", COMMIT, False

    def __init__(self) -> None:
        self.files = tuple(OriginFile(f"part-{number}.json", 1000, blob=str(number)) for number in range(6))
        self.most = 0

    def fetch(self, file: OriginFile, folder: Path) -> Path:
        path = folder / file.name
        path.write_bytes(bytes(1000))
        self.most = max(self.most, len(list(folder.glob("*.json"))))
        return path


def test_at_most_two_files_lie_on_this_disk(store: ObjectStore, tmp_path: Path) -> None:
    origin = CountingOrigin()
    assert push(origin, tmp_path).sent == 6000
    assert origin.most == weights_push.ON_DISK


def test_a_disk_without_room_for_two_files_is_refused_first(
    store: ObjectStore, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_push, "ON_DISK", 10**9)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(DiskFullError) as caught:
        push(hub_origin(hub, tmp_path), tmp_path)
    assert "--cache" in (caught.value.next_command or "")
    assert sent_keys(store) == []


def test_a_merged_checkpoint_of_a_folder_is_pushed_and_kept(store: ObjectStore, tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    folder.mkdir()
    for name in WANTED:
        (folder / name).write_bytes(FILES[name])
    origin = open_origin(parse_model(str(folder)), endpoint=None, token=None, work=tmp_path)
    assert push(origin, tmp_path).files == len(WANTED)
    assert push(origin, tmp_path).skipped == len(WANTED)
    assert {path.name for path in folder.iterdir()} == WANTED


def test_a_model_of_modelscope_is_pushed(store: ObjectStore, tmp_path: Path) -> None:
    with ModelScopeHub(dict(FILES)) as hub:
        origin = open_origin(parse_model(f"modelscope:{REPO}"), endpoint=hub.endpoint, token=None, work=tmp_path)
        assert push(origin, tmp_path).files == len(WANTED)
    assert store.get(BUCKET, f"{PREFIX}/{BIG}") == FILES[BIG]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_what_cannot_be_served_is_not_pushed(store: ObjectStore, hub: Hub, tmp_path: Path, name: str) -> None:
    del hub.files[name]
    with pytest.raises(ModelSourceError, match=f"no {name}"):
        hub_origin(hub, tmp_path)


def test_a_bucket_is_no_source_of_a_push(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        open_origin(parse_model("s3://bucket/b"), endpoint=None, token=None, work=tmp_path)


def test_a_stores_refusal_is_an_error_with_its_words() -> None:
    error = bucket_problem(BucketError("s3://b: AccessDenied", code="AccessDenied"), "again")
    assert isinstance(error, CloudError)
    assert "AccessDenied" in str(error)


def run(*words: str) -> tuple[int, str, str]:
    found = CliRunner().invoke(app, list(words))
    return found.exit_code, found.stdout, found.stderr


def test_the_command_prints_the_model_to_deploy(store: ObjectStore, hub: Hub) -> None:
    code, out, err = run("weights", "push", REPO, f"s3://{BUCKET}/{PREFIX}", "--hub-endpoint", hub.endpoint)
    assert (code, out) == (0, f"s3://{BUCKET}/{PREFIX}\n"), err
    assert f"deployctl up --model s3://{BUCKET}/{PREFIX}" in err
    code, out, _ = run("weights", "push", REPO, f"s3://{BUCKET}/{PREFIX}", "--hub-endpoint", hub.endpoint, "--json")
    assert json.loads(out)["skipped"] == len(WANTED)


def test_the_command_refuses_what_is_no_bucket(store: ObjectStore) -> None:
    code, _, err = run("weights", "push", REPO, "./folder")
    assert code == 2
    assert "s3://bucket/prefix" in err


def test_a_missing_bucket_is_an_error_of_the_cloud(store: ObjectStore, hub: Hub) -> None:
    code, _, err = run("weights", "push", REPO, "s3://not-there/x", "--hub-endpoint", hub.endpoint)
    assert code == CloudError.exit_code
    assert "NoSuchBucket" in err


# ---- the wheelhouse ----


def make_wheel(folder: Path, name: str, version: str, needs: str = "") -> Path:
    info = f"{name}-{version}.dist-info"
    requires = f"Requires-Dist: {needs}\n" if needs else ""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    files = {
        f"{name}.py": b"",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    write_wheel(path, files, info)
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only source of packages."""
    folder = tmp_path / "index"
    make_wheel(folder, "serving_lib", "2.0")
    make_wheel(folder, "pip", "99.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def test_the_wheelhouse_holds_every_package_and_an_index_of_digests(
    store: ObjectStore, index: Path, tmp_path: Path
) -> None:
    ours = make_wheel(tmp_path / "ours", "deployctl", "0.1.0", "serving_lib>=2")
    bundle.download((str(ours),), tmp_path / "wheels", "3.12")
    done = bundle.push(tmp_path / "wheels", opened(), "", lambda _: None)
    assert (done.wheels, done.skipped) == (2, 0)
    listed = json.loads(store.get(BUCKET, bundle.INDEX) or b"")
    assert set(listed) == {"serving_lib-2.0-py3-none-any.whl", "pip-99.0-py3-none-any.whl"}
    for name, digest in listed.items():
        data = store.get(BUCKET, bundle.PREFIX + name)
        assert hashlib.sha256(data or b"").hexdigest() == digest


def test_a_second_wheelhouse_sends_what_changed_and_removes_what_is_gone(store: ObjectStore, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "kept", "1.0")
    old = make_wheel(wheels, "changed", "1.0")
    bundle.push(wheels, opened(), "", lambda _: None)
    old.unlink()
    make_wheel(wheels, "changed", "2.0")
    names: list[str] = []
    assert bundle.push(wheels, opened(), "", names.append).skipped == 1
    assert names == ["changed-2.0-py3-none-any.whl"]
    assert store.get(BUCKET, f"{bundle.PREFIX}changed-1.0-py3-none-any.whl") is None


def test_a_package_that_no_index_has_is_named(index: Path, tmp_path: Path) -> None:
    ours = make_wheel(tmp_path / "ours", "deployctl", "0.1.0", "nobody_has_this")
    with pytest.raises(FailedError, match="nobody_has_this"):
        bundle.download((str(ours),), tmp_path / "wheels", "3.12")


def test_a_bundle_is_made_on_linux_only() -> None:
    bundle.check_host("Linux", "x86_64")
    with pytest.raises(UsageError, match="Darwin arm64"):
        bundle.check_host("Darwin", "arm64")


def test_every_platform_tag_of_this_machine_up_to_the_images_glibc_is_asked_for() -> None:
    from pip._vendor.packaging.tags import sys_tags

    mine = {tag.platform for tag in sys_tags()} - {"any"}
    if sys.platform != "linux" or not all(name.endswith("x86_64") for name in mine):
        pytest.skip("tags of another platform")
    asked = set(bundle.platforms())
    newer = {
        name
        for name in mine
        if (match := re.match(r"manylinux_2_(\d+)_", name)) and int(match[1]) > bundle.NEWEST_GLIBC
    }
    assert mine - newer <= asked


def test_the_command_fills_the_mailbox(
    store: ObjectStore, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = tmp_path / "ours"
    path = make_wheel(ours, "deployctl", "0.1.0", "serving_lib>=2 ; extra == 'server'\nProvides-Extra: server")
    monkeypatch.setattr(bundle, "requirement", lambda wheel, _: f"{wheel.path}[server]")
    monkeypatch.setattr("provision.wheel.ENTRY", "deployctl.py")
    code, out, err = run("weights", "bundle", f"s3://{BUCKET}", "--runtime-wheel", str(path), "--json")
    assert code == 0, err
    assert json.loads(out)["wheels"] == 2
    assert store.keys(BUCKET, bundle.PREFIX)


def test_digests_of_the_record_are_those_of_the_wheel_format(tmp_path: Path) -> None:
    """The wheel specification wants unpadded urlsafe base64."""
    import zipfile

    path = make_wheel(tmp_path, "x", "1.0")
    with zipfile.ZipFile(path) as archive:
        record = archive.read("x-1.0.dist-info/RECORD").decode()
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"").digest()).rstrip(b"=").decode()
    assert f"x.py,sha256={digest},0\n" in record
