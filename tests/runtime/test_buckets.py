"""Buckets: both clouds' SDKs against a store that checks every signature and every right; S3 against moto too."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from runtime import s3
from runtime.alicloud_credentials import AccessKey, CredentialsError, KeyChain, key_of_profile, key_of_role
from runtime.bucket import NO_CREDENTIALS, Blob, Bucket, BucketError, Checksum, Service, open_bucket, service_of
from runtime.mailbox import BucketMailbox
from runtime.vm import Provider
from tests.lab.http_server import HttpServer
from tests.lab.object_store import OWNER, Credential, ObjectStore, vm_role

REGION = "cn-hangzhou"
NAME = "a-mailbox"
ODD_KEY = "weights/größe x+y&z.json"
BOTH = pytest.mark.parametrize("provider", ["aws", "alicloud"])


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with ObjectStore(REGION, (OWNER, vm_role())) as store:
        store.create_bucket(NAME)
        yield store


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials of this machine, and no waiting between tries."""
    for name in [*OWNER.environment(), "AWS_SESSION_TOKEN", "AWS_PROFILE", "OSS_SESSION_TOKEN", "OSS_ENDPOINT"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def opened(
    store: ObjectStore, provider: Provider, monkeypatch: pytest.MonkeyPatch, who: Credential = OWNER, name: str = NAME
) -> Bucket:
    for key, value in who.environment().items():
        monkeypatch.setenv(key, value)
    return open_bucket(provider, REGION, name, store.url(name))


@BOTH
def test_what_is_put_is_got_by_any_name(
    store: ObjectStore, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = opened(store, provider, monkeypatch)
    bucket.put(ODD_KEY, b"words")
    assert store.get(NAME, ODD_KEY) == b"words"
    assert bucket.get(ODD_KEY) == b"words"
    assert [blob.key for blob in bucket.blobs("weights/")] == [ODD_KEY]


@BOTH
def test_a_missing_object_is_none(store: ObjectStore, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened(store, provider, monkeypatch).get("release/current.json") is None


@BOTH
def test_a_range_is_exactly_what_was_asked_for(
    store: ObjectStore, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(NAME, "x", b"0123456789")
    bucket = opened(store, provider, monkeypatch)
    assert bucket.read("x", 2, 5) == b"234"
    store.wait_sent()
    assert store.served[f"{NAME}/x"] == [(2, 5)]


@BOTH
@pytest.mark.parametrize(("start", "end"), [(5, 12), (20, 30)])
def test_a_range_beyond_the_end_is_an_error(
    store: ObjectStore, provider: Provider, start: int, end: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(NAME, "x", b"0123456789")
    with pytest.raises(BucketError):
        opened(store, provider, monkeypatch).read("x", start, end)


@BOTH
def test_a_stream_refuses_an_object_that_was_replaced(
    store: ObjectStore, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(NAME, "x", b"old")
    bucket = opened(store, provider, monkeypatch)
    (blob,) = bucket.blobs("x")
    assert b"".join(bucket.stream("x", 0, 3, blob.etag)) == b"old"
    store.put(NAME, "x", b"new")
    with pytest.raises(BucketError) as caught:
        list(bucket.stream("x", 0, 3, blob.etag))
    assert caught.value.code == "PreconditionFailed"
    assert not caught.value.transient


@BOTH
def test_a_cut_connection_is_transient(store: ObjectStore, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(NAME, "x", bytes(1000))
    store.faults.cut_after = 400
    with pytest.raises(BucketError) as caught:
        opened(store, provider, monkeypatch).read("x", 0, 1000)
    assert caught.value.transient


@BOTH
def test_a_busy_store_is_asked_again(store: ObjectStore, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(NAME, "x", b"1")
    store.faults.busy = 1
    assert opened(store, provider, monkeypatch).get("x") == b"1"


@BOTH
def test_a_file_of_many_parts_arrives_whole_and_its_bytes_are_reported(
    store: ObjectStore, provider: Provider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(f"runtime.{'s3' if provider == 'aws' else 'oss'}.PART_BYTES", 5 * 2**20)
    data = random.Random(1).randbytes(11 * 2**20)
    (tmp_path / "file").write_bytes(data)
    moved: list[int] = []
    opened(store, provider, monkeypatch).upload("weights/big", str(tmp_path / "file"), moved.append)
    assert store.get(NAME, "weights/big") == data
    assert store.buckets[NAME]["weights/big"].etag.endswith("-3")
    assert sum(moved) == len(data)


@BOTH
def test_unfinished_uploads_are_ended_below_their_prefix_only(
    store: ObjectStore, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = opened(store, provider, monkeypatch)
    client: Any = s3_client(store)
    for key in (f"mine/{ODD_KEY}", "mine/b", "others/c"):
        upload = client.create_multipart_upload(Bucket=NAME, Key=key)["UploadId"]
        client.upload_part(Bucket=NAME, Key=key, UploadId=upload, PartNumber=1, Body=b"part")
    assert bucket.drop_uploads("mine/") == 2
    assert [key for upload, (_, key) in store.upload_keys.items() if upload in store.uploads] == ["others/c"]


def s3_client(store: ObjectStore) -> object:
    return s3.S3Bucket(REGION, NAME, service_of(store.url(NAME), NAME))._client


@BOTH
def test_listing_goes_over_all_pages(store: ObjectStore, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"k/{number:05}" for number in range(2100)]
    for key in keys:
        store.put(NAME, key, b"")
    assert [blob.key for blob in opened(store, provider, monkeypatch).blobs("k/")] == keys


@BOTH
def test_delete_empties_a_bucket_of_any_size(
    store: ObjectStore, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1100):
        store.put(NAME, f"k/{number}", b"")
    bucket = opened(store, provider, monkeypatch)
    bucket.delete([blob.key for blob in bucket.blobs()])
    assert store.keys(NAME) == []


@BOTH
def test_the_machines_role_reads_its_release_and_writes_its_status_and_nothing_else(
    store: ObjectStore, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("release/current.json", "status/status.json", "other/x"):
        store.put(NAME, key, b"{}")
    bucket = opened(store, provider, monkeypatch, vm_role())
    assert bucket.get("release/current.json") == b"{}"
    assert bucket.get("secrets/hub.json") is None
    bucket.put("status/status.json", b"new")
    for attempt in (lambda: bucket.get("other/x"), lambda: bucket.put("release/current.json", b"")):
        with pytest.raises(BucketError) as caught:
            attempt()
        assert caught.value.code == "AccessDenied"


@BOTH
def test_a_wrong_key_is_refused_with_the_stores_own_code(
    store: ObjectStore, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = Credential(OWNER.access_key, "not-the-secret")
    with pytest.raises(BucketError) as caught:
        opened(store, provider, monkeypatch, forged).get("x")
    assert caught.value.code == "SignatureDoesNotMatch"
    assert not caught.value.transient


@BOTH
def test_no_credentials_names_what_to_do(
    provider: Provider, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.alicloud_credentials.key_of_role", _no_role)
    with pytest.raises(BucketError, match="configure") as caught:
        open_bucket(provider, REGION, NAME, store.url(NAME)).get("x")
    assert caught.value.code == NO_CREDENTIALS


def _no_role(_: str) -> AccessKey:
    raise CredentialsError("run `aliyun configure`")


@BOTH
def test_nobody_there_is_transient(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"runtime.{'s3' if provider == 'aws' else 'oss'}.ATTEMPTS", 1)
    with ObjectStore(REGION) as gone:
        pass
    with pytest.raises(BucketError) as caught:
        opened(gone, provider, monkeypatch).get("x")
    assert caught.value.transient


def test_a_forbidden_public_endpoint_is_explained(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.faults.refuse_all = "PublicEndpointForbidden"
    with pytest.raises(BucketError, match="accounts made since 2025-03-20") as caught:
        opened(store, "alicloud", monkeypatch).get("x")
    assert caught.value.code == "PublicEndpointForbidden"


def test_checksums_are_those_of_the_content(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(NAME, "x", b"123456789")
    assert opened(store, "aws", monkeypatch).checksum("x") == Checksum("md5", hashlib.md5(b"123456789").hexdigest())
    # The check value of CRC-64/XZ in the catalogue of parametrised CRC algorithms.
    assert opened(store, "alicloud", monkeypatch).checksum("x") == Checksum("crc64ecma", "995dc9bbdf1939fa")
    opened(store, "aws", monkeypatch).put("x", b"123456789")
    assert opened(store, "aws", monkeypatch).checksum("x") == Checksum("crc32", "cbf43926")


@BOTH
def test_a_bucket_in_the_host_name_is_the_same_bucket(
    provider: Provider, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("socket.getaddrinfo", _everything_here(store))
    for key, value in OWNER.environment().items():
        monkeypatch.setenv(key, value)
    bucket = open_bucket(provider, REGION, NAME, f"http://{NAME}.store.example:{store.address[1]}")
    bucket.put("x", b"1")
    assert store.get(NAME, "x") == b"1"


def _everything_here(store: ObjectStore) -> object:
    import socket

    real = socket.getaddrinfo

    def here(_host: str, *rest: object, **more: object) -> object:
        return real(store.address[0], *rest, **more)  # type: ignore[arg-type]

    return here


@pytest.mark.parametrize(
    ("endpoint", "service"),
    [
        (None, Service(None, False)),
        ("https://b.s3.eu-west-1.amazonaws.com", Service("https://s3.eu-west-1.amazonaws.com", False)),
        ("https://b.oss-cn-x-internal.aliyuncs.com", Service("https://oss-cn-x-internal.aliyuncs.com", False)),
        ("http://10.0.0.1:9000/b", Service("http://10.0.0.1:9000", True)),
        ("http://store.example/b/", Service("http://store.example", True)),
        ("http://10.0.0.1:9000", Service("http://10.0.0.1:9000", True)),
        ("oss-cn-x.aliyuncs.com", Service("https://oss-cn-x.aliyuncs.com", False)),
    ],
)
def test_an_endpoint_is_split_into_service_and_bucket(endpoint: str | None, service: Service) -> None:
    assert service_of(endpoint, "b") == service


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def test_s3_on_moto_as_on_our_store(moto: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for key, value in OWNER.environment().items():
        monkeypatch.setenv(key, value)
    bucket = s3.S3Bucket("us-east-1", NAME, Service(moto, path_style=True))
    bucket._client.create_bucket(Bucket=NAME)
    bucket.put(ODD_KEY, b"0123456789")
    assert bucket.get(ODD_KEY) == b"0123456789"
    assert bucket.read(ODD_KEY, 2, 5) == b"234"
    assert list(bucket.blobs()) == [Blob(ODD_KEY, 10, hashlib.md5(b"0123456789").hexdigest())]
    (tmp_path / "f").write_bytes(b"file")
    bucket.upload("f", str(tmp_path / "f"))
    assert bucket.get("f") == b"file"
    bucket.delete([ODD_KEY, "f"])
    assert bucket.get("f") is None
    assert list(bucket.blobs()) == []


@BOTH
def test_a_mailbox_is_a_bucket(store: ObjectStore, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox = BucketMailbox(opened(store, provider, monkeypatch))
    assert mailbox.get("release/current.json") is None
    mailbox.put("release/current.json", b"{}")
    assert mailbox.get("release/current.json") == b"{}"
    assert mailbox.keys("release/") == ["release/current.json"]


class _Metadata(BaseHTTPRequestHandler):
    """Alibaba's metadata service as far as a RAM role goes; without a token it answers 403."""

    asked: list[str]
    lasts_s: float
    has_role: bool

    def do_PUT(self) -> None:
        assert int(self.headers["X-aliyun-ecs-metadata-token-ttl-seconds"]) <= 21600
        self._answer(200, "the-token")

    def do_GET(self) -> None:
        self.asked.append(self.path)
        folder = "/latest/meta-data/ram/security-credentials/"
        if self.headers["X-aliyun-ecs-metadata-token"] != "the-token":
            self._answer(403, "")
        elif not self.has_role:
            self._answer(404, "")
        elif self.path == folder:
            self._answer(200, "a-role")
        else:
            assert self.path == folder + "a-role"
            expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + self.lasts_s))
            found = {"Code": "Success", "AccessKeyId": "STS.id", "AccessKeySecret": "s", "SecurityToken": "t"}
            self._answer(200, json.dumps(found | {"Expiration": expires}))

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[tuple[type[_Metadata], str]]:
    class Bound(_Metadata):
        asked: list[str] = []  # noqa: RUF012 - a fresh class for each test
        lasts_s = 3600.0
        has_role = True

    with HttpServer(Bound) as server:
        yield Bound, server.url


def test_the_roles_key_is_kept_until_it_is_about_to_expire(
    metadata: tuple[type[_Metadata], str], tmp_path: Path
) -> None:
    service, url = metadata
    chain = KeyChain({}, tmp_path, url)
    assert (chain.find().id, chain.find().token) == ("STS.id", "t")
    assert len(service.asked) == 2
    service.lasts_s = 200.0
    short = KeyChain({}, tmp_path, url)
    short.find()
    short.find()
    assert len(service.asked) == 6


def test_a_role_that_is_not_attached_yet_is_transient(metadata: tuple[type[_Metadata], str]) -> None:
    service, url = metadata
    service.has_role = False
    with pytest.raises(CredentialsError, match="no RAM role yet") as caught:
        key_of_role(url)
    assert caught.value.transient


def test_the_environment_wins_over_the_profile_and_the_profile_over_the_role(tmp_path: Path) -> None:
    (tmp_path / ".aliyun").mkdir()
    profile = {"name": "default", "mode": "AK", "access_key_id": "of-profile", "access_key_secret": "s"}
    config = json.dumps({"current": "default", "profiles": [profile]})
    (tmp_path / ".aliyun/config.json").write_text(config)
    assert KeyChain({}, tmp_path, "http://127.0.0.1:1").find().id == "of-profile"
    env = {"ALICLOUD_ACCESS_KEY": "of-env", "ALICLOUD_SECRET_KEY": "s"}
    assert KeyChain(env, tmp_path, "http://127.0.0.1:1").find().id == "of-env"


def test_a_profile_of_another_kind_or_name_is_refused_with_its_name() -> None:
    config = json.dumps({"current": "a", "profiles": [{"name": "a", "mode": "CloudSSO"}]}).encode()
    with pytest.raises(CredentialsError, match="CloudSSO"):
        key_of_profile(config)
    with pytest.raises(CredentialsError, match="no profile 'b'"):
        key_of_profile(config, "b")
