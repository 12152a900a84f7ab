"""The store of the tests is as strict as the clouds' are: what a wrong signer would send is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import httpx
import pytest
from alibabacloud_oss_v2.signer.v4 import SignerV4
from alibabacloud_oss_v2.types import Credentials, HttpRequest, SigningContext
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as AwsCredentials

from tests.lab.object_store import OWNER, ObjectStore

REGION = "eu-west-1"
BUCKET = "a-bucket"
KEY = "release/größe x+y.json"
Sign = Callable[..., dict[str, str]]


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with ObjectStore(REGION) as store:
        store.create_bucket(BUCKET)
        store.put(BUCKET, KEY, b"{}")
        yield store


def s3_headers(url: str, region: str = REGION, secret: str = OWNER.secret) -> dict[str, str]:
    request = AWSRequest("GET", url)
    request.context["payload_signing_enabled"] = True
    S3SigV4Auth(AwsCredentials(OWNER.access_key, secret), "s3", region).add_auth(request)
    return dict(request.headers.items())


def oss_headers(
    url: str, region: str = REGION, secret: str = OWNER.secret, when: datetime | None = None
) -> dict[str, str]:
    request = HttpRequest("GET", url)
    context = SigningContext(
        product="oss",
        region=region,
        bucket=BUCKET,
        key=KEY,
        request=request,
        credentials=Credentials(OWNER.access_key, secret),
        signing_time=when,
    )
    SignerV4().sign(context)
    return dict(request.headers.items())


def url_of(store: ObjectStore) -> str:
    return f"{store.url(BUCKET)}/{quote(KEY)}"


@pytest.mark.parametrize("sign", [s3_headers, oss_headers])
def test_what_the_sdks_sign_is_accepted(store: ObjectStore, sign: Sign) -> None:
    url = url_of(store)
    answer = httpx.get(url, headers=sign(url))
    assert (answer.status_code, answer.content) == (200, b"{}"), answer.text


@pytest.mark.parametrize("sign", [s3_headers, oss_headers])
@pytest.mark.parametrize(
    ("region", "secret", "code"),
    [("us-east-1", OWNER.secret, "AuthorizationHeaderMalformed"), (REGION, "wrong", "SignatureDoesNotMatch")],
)
def test_another_region_or_secret_is_refused(
    store: ObjectStore, sign: Sign, region: str, secret: str, code: str
) -> None:
    url = url_of(store)
    answer = httpx.get(url, headers=sign(url, region, secret))
    assert answer.status_code == 403
    assert code in answer.text


@pytest.mark.parametrize("sign", [s3_headers, oss_headers])
def test_a_signature_covers_path_query_and_headers(store: ObjectStore, sign: Sign) -> None:
    url = url_of(store)
    store.put(BUCKET, "secrets/hub.json", b"{}")
    headers = sign(url)
    extra = "x-oss-range-behavior" if sign is oss_headers else "x-amz-checksum-mode"
    attempts = (
        httpx.get(f"{store.url(BUCKET)}/secrets/hub.json", headers=headers),
        httpx.get(f"{url}?versionId=1", headers=headers),
        httpx.get(url, headers={**headers, extra: "standard"}),
    )
    assert [answer.status_code for answer in attempts] == [403, 403, 403]


def test_a_request_of_twenty_minutes_ago_is_refused(store: ObjectStore) -> None:
    url = url_of(store)
    answer = httpx.get(url, headers=oss_headers(url, when=datetime.now(UTC) - timedelta(minutes=20)))
    assert "RequestTimeTooSkewed" in answer.text


def test_nobody_reads_without_a_signature(store: ObjectStore) -> None:
    assert httpx.get(url_of(store)).status_code == 403


def poll(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_bytes_that_were_served_twice_are_counted(store: ObjectStore) -> None:
    store.put(BUCKET, KEY, bytes(100))
    url = url_of(store)
    for asked in ("bytes=0-49", "bytes=40-59", "bytes=60-99"):
        httpx.get(url, headers={**s3_headers(url), "Range": asked})
    poll(lambda: store.bytes_served(BUCKET, KEY) == 110)  # a body counts once it was sent, a moment after it has come
    assert store.served_again(BUCKET, KEY) == 10


def test_a_slow_store_is_slow(store: ObjectStore) -> None:
    store.put(BUCKET, KEY, bytes(100_000))
    store.faults.bytes_per_s = 500_000
    url = url_of(store)
    began = time.monotonic()
    httpx.get(url, headers=s3_headers(url))
    assert time.monotonic() - began > 0.15
