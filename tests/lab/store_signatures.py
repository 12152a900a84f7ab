"""SigV4 and OSS4 signatures of a request that has arrived, computed anew from the stores' documentation.

"Authenticating Requests: Using the Authorization Header (AWS Signature Version 4)", Amazon S3 API Reference; "Include a
V4 signature in the Authorization header", OSS developer guide. None of the SDKs' signers is used: they are what is
tested.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, unquote

CLOCK_SKEW_S = 900.0
_AUTHORIZATION = re.compile(r"(AWS4-HMAC-SHA256|OSS4-HMAC-SHA256) (.*)")


class BadSignature(Exception):
    """`code` is what a store would answer."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Signed:
    """What a signature covers. `path` and `query` as they were sent; header names in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    bucket: str
    key: str

    @property
    def is_oss(self) -> bool:
        return self.headers.get("authorization", "").startswith("OSS4")

    @property
    def access_key(self) -> str:
        return self._credential.split("/")[0]

    @property
    def session_token(self) -> str | None:
        return self.headers.get("x-oss-security-token" if self.is_oss else "x-amz-security-token")

    @property
    def _fields(self) -> dict[str, str]:
        match = _AUTHORIZATION.fullmatch(self.headers.get("authorization", ""))
        if match is None:
            raise BadSignature("AccessDenied", "no V4 signature in the Authorization header")
        parts = (part.strip().partition("=") for part in match.group(2).split(","))
        return {name: value for name, _, value in parts}

    @property
    def _credential(self) -> str:
        return self._fields.get("Credential", "")

    def check(self, secret: str, region: str) -> None:
        """Raises BadSignature unless this request was signed with `secret`, for this region, just now."""
        _, date, signed_region, service, terminal = [*self._credential.split("/"), "", "", "", ""][:5]
        dialect = ("oss", "aliyun_v4_request") if self.is_oss else ("s3", "aws4_request")
        if (signed_region, service, terminal) != (region, *dialect):
            raise BadSignature("AuthorizationHeaderMalformed", f"the scope {self._credential!r} is not for {region}")
        stamp = self.headers.get("x-oss-date" if self.is_oss else "x-amz-date", "")
        self._check_clock(stamp, date)
        algorithm, prefix = ("OSS4-HMAC-SHA256", "aliyun_v4") if self.is_oss else ("AWS4-HMAC-SHA256", "AWS4")
        canonical = self._oss_request() if self.is_oss else self._aws_request()
        scope = "/".join((date, region, *dialect))
        text = "\n".join((algorithm, stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()))
        key = (prefix + secret).encode()
        for part in (date, region, *dialect):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        expected = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, self._fields.get("Signature", "")):
            raise BadSignature("SignatureDoesNotMatch", f"the canonical request is {canonical!r}")

    @staticmethod
    def _check_clock(stamp: str, date: str) -> None:
        try:
            when = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        except ValueError:
            raise BadSignature("AccessDenied", f"the date {stamp!r} is missing or malformed") from None
        if abs((datetime.now(UTC) - when).total_seconds()) > CLOCK_SKEW_S or not stamp.startswith(date):
            raise BadSignature("RequestTimeTooSkewed", f"the date is {stamp}")

    def _aws_request(self) -> str:
        names = self._fields.get("SignedHeaders", "").split(";")
        needed = {"host", *(name for name in self.headers if name.startswith("x-amz-"))}
        if missing := needed - set(names):
            raise BadSignature("AccessDenied", f"there are headers that were not signed: {sorted(missing)}")
        pairs = sorted(
            (_encoded(name), _encoded(value)) for name, _, value in (p.partition("=") for p in self._query_parts)
        )
        headers = "".join(f"{name}:{' '.join(self.headers.get(name, '').split())}\n" for name in names)
        payload = self.headers.get("x-amz-content-sha256", "")
        query = "&".join(f"{name}={value}" for name, value in pairs)
        return "\n".join((self.method, self.path, query, headers, ";".join(names), payload))

    def _oss_request(self) -> str:
        extra = sorted(name for name in self._fields.get("AdditionalHeaders", "").split(";") if name)
        names = sorted(
            name
            for name in self.headers
            if name.startswith("x-oss-") or name in ("content-type", "content-md5") or name in extra
        )
        pairs = sorted(part.partition("=")[::2] for part in self._query_parts)
        query = "&".join(f"{name}={value}" if value else name for name, value in pairs)
        resource = "/" + (f"{self.bucket}/" if self.bucket else "") + self.key
        headers = "".join(f"{name}:{self.headers[name].strip()}\n" for name in names)
        payload = self.headers.get("x-oss-content-sha256", "")
        return "\n".join((self.method, quote(resource, safe="/"), query, headers, ";".join(extra), payload))

    @property
    def _query_parts(self) -> list[str]:
        return [part for part in self.query.split("&") if part]


def _encoded(text: str) -> str:
    return quote(unquote(text), safe="-_.~")
