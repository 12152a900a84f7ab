"""Object stores: one interface over S3 and OSS, for the mailbox, for weights, and for emptying a bucket.

Keys are relative to the bucket. Clients come from the clouds' own SDKs (boto3, alibabacloud-oss-v2), which find the
user's credentials on a laptop and the instance role's on a VM.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol
from urllib.parse import urlsplit, urlunsplit

from runtime.vm import Provider

NO_CLIENT = "NoClient"  # BucketError.code: the cloud's SDK is not installed
ENDPOINT_VARIABLE: dict[Provider, str] = {"aws": "AWS_ENDPOINT_URL_S3", "alicloud": "OSS_ENDPOINT"}
REGION_VARIABLES: dict[Provider, tuple[str, ...]] = {
    "aws": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "alicloud": ("OSS_REGION", "ALIBABA_CLOUD_REGION_ID", "ALICLOUD_REGION"),
}
DEFAULT_REGION: dict[Provider, str] = {"aws": "us-east-1", "alicloud": "cn-hangzhou"}
NO_CREDENTIALS = "NoCredentials"  # BucketError.code: neither the user's nor an instance role's were found


class BucketError(Exception):
    """An object store refused or could not be reached. `code` is the store's own ("AccessDenied"), if it gave one;
    `transient`: the same request may succeed later."""

    def __init__(self, message: str, *, code: str | None = None, transient: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.transient = transient


@dataclass(frozen=True, slots=True)
class Blob:
    """One object in a listing. `etag` without quotes."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Checksum:
    """Of a whole object's bytes, as lower-case hex."""

    algorithm: Literal["sha256", "md5", "crc32", "crc64ecma"]
    value: str


class Bucket(Protocol):
    """One bucket. Every method raises BucketError; a missing object is None or no item, not an error."""

    def get(self, key: str) -> bytes | None: ...

    def read(self, key: str, start: int, end: int) -> bytes:
        """Bytes start…end-1. Raises BucketError when the object is missing or shorter."""
        ...

    def stream(self, key: str, start: int, end: int, etag: str | None = None) -> Iterator[bytes]:
        """Bytes start…end-1 as they come. Raises BucketError also when fewer come, or when the object is no longer the
        one with `etag`."""
        ...

    def checksum(self, key: str) -> Checksum | None:
        """What the store itself knows about the object's content; None where that says nothing (an ETag of parts)."""
        ...

    def put(self, key: str, data: bytes) -> None: ...

    def upload(self, key: str, path: str, moved: Callable[[int], None] | None = None) -> None:
        """A file of any size, in parts where it is large. `moved` is called with each number of bytes sent, from any
        thread."""
        ...

    def blobs(self, prefix: str = "") -> Iterator[Blob]:
        """Objects whose key begins with `prefix`, by key."""
        ...

    def delete(self, keys: list[str]) -> None: ...

    def drop_uploads(self, prefix: str = "") -> int:
        """Ends uploads in parts below `prefix` that were never completed, and says how many: no listing shows their
        parts, and they are billed."""
        ...


@dataclass(frozen=True, slots=True)
class Service:
    """Where a store's API is. `url` None = the SDK's own address for the region; `path_style`: the bucket is the first
    segment of the path, not of the host name."""

    url: str | None
    path_style: bool


def service_of(endpoint: str | None, bucket: str) -> Service:
    """Takes the bucket out of a base URL such as `Vm.endpoint`.

    https://b.s3.eu-west-1.amazonaws.com → virtual host; http://127.0.0.1:9000/b → path; a URL without the bucket is the
    service's own, by path where the host is an address.
    """
    if endpoint is None:
        return Service(None, path_style=False)
    parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
    segments = [segment for segment in parts.path.split("/") if segment]
    if parts.netloc.startswith(f"{bucket}."):
        return Service(urlunsplit((parts.scheme, parts.netloc.removeprefix(f"{bucket}."), "", "", "")), False)
    if segments[:1] == [bucket]:
        return Service(urlunsplit((parts.scheme, parts.netloc, "/".join(segments[1:]), "", "")), True)
    return Service(urlunsplit(parts).rstrip("/"), path_style=_is_address(parts.hostname or ""))


def sibling_endpoint(endpoint: str, bucket: str, other: str) -> str:
    """The base URL of the bucket `other` in the store where `bucket` is at `endpoint`."""
    service = service_of(endpoint, bucket)
    parts = urlsplit(str(service.url))
    if service.path_style:
        return f"{service.url}/{other}"
    return urlunsplit((parts.scheme, f"{other}.{parts.netloc}", "", "", ""))


def region_of(provider: Provider, env: Mapping[str, str]) -> str:
    """The user's own choice in the environment, else the project's default region."""
    variables = REGION_VARIABLES[provider]
    return next((env[name] for name in variables if env.get(name)), DEFAULT_REGION[provider])


def open_bucket(provider: Provider, region: str, bucket: str, endpoint: str | None = None) -> Bucket:
    """A client for `bucket`. Nothing is sent yet. `endpoint`: see `service_of`; by default what the cloud's own tools
    read from ENDPOINT_VARIABLE, else the region's public address.

    Raises BucketError with code NO_CLIENT when the extra `s3` or `oss` is not installed.
    """
    service = service_of(endpoint or os.environ.get(ENDPOINT_VARIABLE[provider]) or None, bucket)
    extra = "s3" if provider == "aws" else "oss"
    try:
        if provider == "aws":
            from runtime.s3 import S3Bucket

            return S3Bucket(region, bucket, service)
        from runtime.oss import OssBucket

        return OssBucket(region, bucket, service)
    except ModuleNotFoundError as error:
        raise BucketError(
            f"{error.name} is not installed; run: pip install 'deployctl[{extra}]'", code=NO_CLIENT
        ) from error


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True
