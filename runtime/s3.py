"""S3 through boto3, which looks for credentials in the environment, in profiles and in the instance's role."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import boto3
import botocore.exceptions as failures
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from runtime.bucket import NO_CREDENTIALS, Blob, BucketError, Checksum, Service

PART_BYTES = 32 * 2**20  # 10,000 parts at most: objects up to 312 GiB
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30  # between two bytes
ATTEMPTS = 4
CONNECTIONS = 16
DELETE_MOST = 1000  # keys in one request
CHUNK_BYTES = 2**16  # small, so that something is seen to move on a slow line too
MISSING = ("NoSuchKey", "404", "NotFound")
TRANSIENT = ("SlowDown", "RequestTimeout", "Throttling", "RequestTimeTooSkewed", "ExpiredToken", "OperationAborted")
_NO_CREDENTIALS = (failures.NoCredentialsError, failures.PartialCredentialsError, failures.ProfileNotFound)
_LINE = (
    failures.ConnectionError,
    failures.HTTPClientError,
    failures.IncompleteReadError,
    failures.ResponseStreamingError,
    failures.CredentialRetrievalError,
    failures.MetadataRetrievalError,
)


class S3Bucket:
    """`runtime.bucket.Bucket` on S3."""

    def __init__(self, region: str, bucket: str, service: Service) -> None:
        self.name = bucket
        self._place = f"s3://{bucket}"
        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            max_pool_connections=CONNECTIONS,
            s3={"addressing_style": "path" if service.path_style else "virtual"},
        )
        session = boto3.session.Session()  # the default session would keep another bucket's credentials
        with self._errors():
            self._client: Any = session.client("s3", region_name=region, endpoint_url=service.url, config=config)

    def get(self, key: str) -> bytes | None:
        try:
            with self._errors(key):
                body: bytes = self._client.get_object(Bucket=self.name, Key=key)["Body"].read()
                return body
        except BucketError as error:
            if error.code in MISSING:
                return None
            raise

    def read(self, key: str, start: int, end: int) -> bytes:
        return b"".join(self.stream(key, start, end))

    def stream(self, key: str, start: int, end: int, etag: str | None = None) -> Iterator[bytes]:
        wanted = {"IfMatch": f'"{etag}"'} if etag else {}
        with self._errors(key):
            answer = self._client.get_object(Bucket=self.name, Key=key, Range=f"bytes={start}-{end - 1}", **wanted)
            seen = 0
            with closing(answer["Body"]) as body:
                for chunk in body.iter_chunks(CHUNK_BYTES):
                    seen += len(chunk)
                    yield chunk
        if seen != end - start:
            raise BucketError(f"{self._place}/{key}: {seen} bytes came, {end - start} were asked for")

    def checksum(self, key: str) -> Checksum | None:
        with self._errors(key):
            found = self._client.head_object(Bucket=self.name, Key=key, ChecksumMode="ENABLED")
        if found.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
            if "ChecksumSHA256" in found:
                return Checksum("sha256", base64.b64decode(found["ChecksumSHA256"]).hex())
            if "ChecksumCRC32" in found:
                return Checksum("crc32", base64.b64decode(found["ChecksumCRC32"]).hex())
        etag = found["ETag"].strip('"')
        # Under KMS, or with parts, the ETag is no MD5 of the content (S3 User Guide, "Checking object integrity").
        plain = found.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in found
        return Checksum("md5", etag) if plain and re.fullmatch(r"[0-9a-f]{32}", etag) else None

    def put(self, key: str, data: bytes) -> None:
        with self._errors(key):
            self._client.put_object(Bucket=self.name, Key=key, Body=data)

    def upload(self, key: str, path: str, moved: Callable[[int], None] | None = None) -> None:
        config = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES)
        with self._errors(key):
            try:
                self._client.upload_file(path, self.name, key, Callback=moved, Config=config)
            except S3UploadFailedError as error:
                # The transfer manager puts the client's own error into words; the cause is still that error.
                raise error.__context__ or error from None

    def blobs(self, prefix: str = "") -> Iterator[Blob]:
        with self._errors(prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix):
                for item in page.get("Contents", []):
                    yield Blob(item["Key"], item["Size"], item["ETag"].strip('"'))

    def delete(self, keys: list[str]) -> None:
        for first in range(0, len(keys), DELETE_MOST):
            some = [{"Key": key} for key in keys[first : first + DELETE_MOST]]
            with self._errors():
                answer = self._client.delete_objects(Bucket=self.name, Delete={"Objects": some, "Quiet": True})
            for error in answer.get("Errors", []):
                raise BucketError(f"{self._place}/{error['Key']}: {error['Message']}", code=error["Code"])

    def drop_uploads(self, prefix: str = "") -> int:
        count = 0
        with self._errors(prefix):
            for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self.name, Prefix=prefix):
                for item in page.get("Uploads", []):
                    self._client.abort_multipart_upload(Bucket=self.name, Key=item["Key"], UploadId=item["UploadId"])
                    count += 1
        return count

    @contextmanager
    def _errors(self, key: str = "") -> Iterator[None]:
        place = f"{self._place}/{key}" if key else self._place
        try:
            yield
        except failures.ClientError as error:
            said = error.response.get("Error", {})
            code = str(said.get("Code", "unknown"))
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            transient = status >= 500 or status == 429 or code.startswith(TRANSIENT)
            words = ": ".join(part for part in (place, code, said.get("Message")) if part)
            raise BucketError(words, code=code, transient=transient) from error
        except _NO_CREDENTIALS as error:
            raise BucketError(
                f"{place}: no AWS credentials ({error}); run `aws configure`, or set AWS_PROFILE", code=NO_CREDENTIALS
            ) from error
        except failures.SSLError as error:
            raise BucketError(f"{place}: {error}") from error
        except (failures.BotoCoreError, OSError) as error:
            raise BucketError(f"{place}: {error}", transient=isinstance(error, _LINE)) from error
