"""OSS through Alibaba Cloud's SDK (V4 signatures); credentials come from `runtime.alicloud_credentials`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import alibabacloud_oss_v2 as oss
import requests
from alibabacloud_oss_v2 import exceptions as failures
from alibabacloud_oss_v2.credentials import CredentialsProviderFunc

from runtime.alicloud_credentials import AccessKey, CredentialsError, KeyChain
from runtime.bucket import NO_CREDENTIALS, Blob, BucketError, Checksum, Service

PART_BYTES = 32 * 2**20  # 10,000 parts at most: objects up to 312 GiB
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30  # between two bytes
ATTEMPTS = 4
PARALLEL_PARTS = 4
DELETE_MOST = 1000  # keys in one request
CHUNK_BYTES = 2**16  # small, so that something is seen to move on a slow line too
MISSING = "NoSuchKey"
TRANSIENT = ("RequestTimeTooSkewed", "RequestTimeout", "SecurityTokenExpired")
_LINE = (
    failures.RequestError,
    failures.ResponseError,
    failures.InconsistentError,  # its own CRC-64 of what came
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
)
FORBIDDEN_HINT = (
    "Alibaba Cloud closes the public endpoints of mainland regions to accounts made since 2025-03-20; set OSS_ENDPOINT "
    "to a domain of your own that is bound to the bucket, or work from inside the region"
)


class OssBucket:
    """`runtime.bucket.Bucket` on OSS."""

    def __init__(self, region: str, bucket: str, service: Service, keys: Callable[[], AccessKey] | None = None) -> None:
        self.name = bucket
        self._place = f"oss://{bucket}"
        find = keys or KeyChain(os.environ).find

        def credentials() -> Any:
            key = find()
            return oss.credentials.Credentials(key.id, key.secret, key.token)

        config = oss.Config(
            region=region,
            endpoint=service.url,
            use_path_style=service.path_style,
            credentials_provider=CredentialsProviderFunc(credentials),
            connect_timeout=CONNECT_TIMEOUT_S,
            readwrite_timeout=READ_TIMEOUT_S,
            retry_max_attempts=ATTEMPTS,
        )
        self._client = oss.Client(config)

    def get(self, key: str) -> bytes | None:
        try:
            with self._errors(key):
                answer = self._client.get_object(oss.GetObjectRequest(bucket=self.name, key=key))
                with answer.body as body:
                    data: bytes = body.read()
                    return data
        except BucketError as error:
            if error.code == MISSING:
                return None
            raise

    def read(self, key: str, start: int, end: int) -> bytes:
        return b"".join(self.stream(key, start, end))

    def stream(self, key: str, start: int, end: int, etag: str | None = None) -> Iterator[bytes]:
        request = oss.GetObjectRequest(
            bucket=self.name,
            key=key,
            range_header=f"bytes={start}-{end - 1}",
            range_behavior="standard",  # otherwise a range beyond the end answers with the whole object
            if_match=f'"{etag}"' if etag else None,
        )
        seen = 0
        with self._errors(key):
            answer = self._client.get_object(request)
            with answer.body as body:
                for chunk in body.iter_bytes(block_size=CHUNK_BYTES):
                    seen += len(chunk)
                    yield chunk
        if seen != end - start:
            raise BucketError(f"{self._place}/{key}: {seen} bytes came, {end - start} were asked for")

    def checksum(self, key: str) -> Checksum | None:
        with self._errors(key):
            found = self._client.head_object(oss.HeadObjectRequest(bucket=self.name, key=key))
        return Checksum("crc64ecma", f"{int(found.hash_crc64):016x}") if found.hash_crc64 else None

    def put(self, key: str, data: bytes) -> None:
        with self._errors(key):
            self._client.put_object(oss.PutObjectRequest(bucket=self.name, key=key, body=data))

    def upload(self, key: str, path: str, moved: Callable[[int], None] | None = None) -> None:
        def progress(more: int, _written: int, _total: int) -> None:
            if moved is not None:
                moved(more)

        uploader = self._client.uploader(part_size=PART_BYTES, parallel_num=PARALLEL_PARTS)
        with self._errors(key):
            uploader.upload_file(oss.PutObjectRequest(bucket=self.name, key=key, progress_fn=progress), path)

    def blobs(self, prefix: str = "") -> Iterator[Blob]:
        pages = self._client.list_objects_v2_paginator()
        with self._errors(prefix):
            for page in pages.iter_page(oss.ListObjectsV2Request(bucket=self.name, prefix=prefix)):
                for item in page.contents or []:
                    yield Blob(str(item.key), int(item.size or 0), str(item.etag or "").strip('"'))

    def delete(self, keys: list[str]) -> None:
        for first in range(0, len(keys), DELETE_MOST):
            some = [oss.DeleteObject(key=key) for key in keys[first : first + DELETE_MOST]]
            with self._errors():
                self._client.delete_multiple_objects(
                    oss.DeleteMultipleObjectsRequest(bucket=self.name, objects=some, quiet=True, encoding_type="url")
                )

    def drop_uploads(self, prefix: str = "") -> int:
        pages = self._client.list_multipart_uploads_paginator()
        count = 0
        with self._errors(prefix):
            for page in pages.iter_page(oss.ListMultipartUploadsRequest(bucket=self.name, prefix=prefix)):
                for item in page.uploads or []:
                    self._client.abort_multipart_upload(
                        oss.AbortMultipartUploadRequest(bucket=self.name, key=item.key, upload_id=item.upload_id)
                    )
                    count += 1
        return count

    @contextmanager
    def _errors(self, key: str = "") -> Iterator[None]:
        place = f"{self._place}/{key}" if key else self._place
        try:
            yield
        except BucketError:
            raise
        except CredentialsError as error:
            raise BucketError(f"{place}: {error}", code=NO_CREDENTIALS, transient=error.transient) from error
        except (failures.BaseError, requests.RequestException, OSError) as error:
            raise _translate(error, place) from error


def _translate(error: Exception, place: str) -> BucketError:
    """The cause inside the SDK's wrappers (OperationError, UploadError, RequestError) as a BucketError."""
    cause: BaseException = error
    transient = isinstance(error, _LINE)
    while isinstance(inner := getattr(cause, "kwargs", {}).get("error"), BaseException):
        cause = inner
        transient = (transient or isinstance(cause, _LINE)) and not isinstance(cause, requests.exceptions.SSLError)
    if isinstance(cause, CredentialsError):
        return BucketError(f"{place}: {cause}", code=NO_CREDENTIALS, transient=cause.transient)
    if isinstance(cause, failures.ServiceError):
        code = str(cause.code or cause.status_code)
        said = ": ".join(part for part in (place, code, cause.message) if part)
        if code == "PublicEndpointForbidden":
            said += f" ({FORBIDDEN_HINT})"
        elif "must be addressed using the specified endpoint" in str(cause.message):
            said += " (the bucket is in another region)"
        transient = cause.status_code >= 500 or cause.status_code == 429 or code in TRANSIENT
        return BucketError(said, code=code, transient=transient)
    return BucketError(f"{place}: {cause}", transient=transient)
