"""Stage 0 signs requests as the clouds' own SDKs do."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from alibabacloud_oss_v2.credentials import Credentials as OssCredentials
from alibabacloud_oss_v2.signer.v4 import SignerV4
from alibabacloud_oss_v2.types import HttpRequest, SigningContext
from botocore import auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.templates.stage0_program import load_stage0

STAGE0 = load_stage0()
PRINTABLE = st.characters(min_codepoint=0x20, max_codepoint=0x2FFF, exclude_categories=("Cs", "Cc"))
KEYS = st.text(PRINTABLE, min_size=1, max_size=60)
SECRETS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=60)
TOKENS = st.none() | st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=400)
REGIONS = st.sampled_from(["us-east-1", "ap-southeast-3", "cn-hangzhou", "cn-heyuan-acdr-1"])
METHODS = st.sampled_from(["GET", "PUT"])
TIMES = st.integers(min_value=1_700_000_000, max_value=4_000_000_000)
BODIES = st.binary(max_size=200)


@settings(max_examples=150, deadline=None)
@given(
    key=KEYS,
    secret=SECRETS,
    token=TOKENS,
    region=REGIONS,
    method=METHODS,
    now=TIMES,
    body=BODIES,
    by_path=st.booleans(),
)
def test_its_s3_signature_is_botocores(
    key: str, secret: str, token: str | None, region: str, method: str, now: int, body: bytes, by_path: bool
) -> None:
    host = "127.0.0.1:9000" if by_path else f"bucket.s3.{region}.amazonaws.com"
    endpoint = f"http://{host}/bucket" if by_path else f"https://{host}"
    vm = {"provider": "aws", "region": region, "bucket": "bucket", "endpoint": endpoint}
    own = {"content-type": "application/json"} if body else {}
    ours = STAGE0.sign(vm, ("AKID", secret, token), method, key, own, body, now)

    request = AWSRequest(method=method, url=f"{endpoint}/{STAGE0.quote(key)}", data=body, headers={**own, "host": host})
    signer = auth.S3SigV4Auth(Credentials("AKID", secret, token), "s3", region)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auth, "get_current_datetime", lambda: datetime.datetime.fromtimestamp(now, datetime.UTC))
        signer.add_auth(request)
    assert lower(request.headers) == ours


@settings(max_examples=150, deadline=None)
@given(key=KEYS, secret=SECRETS, token=TOKENS, region=REGIONS, method=METHODS, now=TIMES, body=BODIES)
def test_its_oss_signature_is_the_sdks(
    key: str, secret: str, token: str | None, region: str, method: str, now: int, body: bytes
) -> None:
    endpoint = f"https://bucket.oss-{region}-internal.aliyuncs.com"
    vm = {"provider": "alicloud", "region": region, "bucket": "bucket", "endpoint": endpoint}
    own = {"content-type": "application/json"} if body else {}
    ours = STAGE0.sign(vm, ("AKID", secret, token), method, key, own, body, now)

    request = HttpRequest(method, f"{endpoint}/{STAGE0.quote(key)}", headers=dict(own), body=body)
    context = SigningContext(
        product="oss",
        region=region,
        bucket="bucket",
        key=key,
        request=request,
        credentials=OssCredentials("AKID", secret, token),
        signing_time=datetime.datetime.fromtimestamp(now, datetime.UTC),
    )
    SignerV4().sign(context)
    theirs = lower(request.headers)
    del theirs["date"]  # sent for old servers, not signed
    assert theirs == ours


def lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
