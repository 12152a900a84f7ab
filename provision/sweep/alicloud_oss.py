"""Mailboxes on OSS as the sweep sees them: all of the account, emptied, deleted. Not yet run on a real cloud."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import alibabacloud_oss_v2 as oss
from alibabacloud_oss_v2 import exceptions as failures
from alibabacloud_oss_v2.credentials import CredentialsProviderFunc

from provision.sweep.alicloud_client import ATTEMPTS, AlicloudClient, ApiError
from runtime.alicloud_credentials import CredentialsError
from runtime.bucket import ENDPOINT_VARIABLE, BucketError, open_bucket, service_of

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30


class MailboxStore:
    """Every method raises ApiError, in the words of the other APIs."""

    def __init__(self, api: AlicloudClient, env: Mapping[str, str]) -> None:
        self._api = api
        self._endpoint = env.get(ENDPOINT_VARIABLE["alicloud"]) or None

    def mailboxes(self, prefix: str) -> Iterator[tuple[str, str]]:
        """(name, region) of the buckets whose name begins with `prefix`, in all regions."""
        with _errors("oss:ListBuckets"):
            for page in self._client().list_buckets_paginator().iter_page(oss.ListBucketsRequest(prefix=prefix)):
                yield from ((str(item.name), str(item.region or self._api.region)) for item in page.buckets or [])

    def empty(self, bucket: str, region: str) -> None:
        """Deletes objects, and what unfinished uploads left: OSS deletes no bucket that holds either."""
        with _errors("oss:DeleteObject"):
            objects = open_bucket("alicloud", region, bucket, self._endpoint)
            objects.delete([blob.key for blob in objects.blobs()])
            client = self._client(region)
            pages = client.list_multipart_uploads_paginator()
            for page in pages.iter_page(oss.ListMultipartUploadsRequest(bucket=bucket)):
                for item in page.uploads or []:
                    client.abort_multipart_upload(
                        oss.AbortMultipartUploadRequest(bucket=bucket, key=item.key, upload_id=item.upload_id)
                    )

    def delete(self, bucket: str, region: str) -> None:
        with _errors("oss:DeleteBucket"):
            self._client(region).delete_bucket(oss.DeleteBucketRequest(bucket=bucket))

    def _client(self, region: str | None = None) -> Any:
        service = service_of(self._endpoint, "")

        def credentials() -> Any:
            key = self._api.keys.find()
            return oss.credentials.Credentials(key.id, key.secret, key.token)

        config = oss.Config(
            region=region or self._api.region,
            endpoint=service.url,
            use_path_style=service.path_style,
            credentials_provider=CredentialsProviderFunc(credentials),
            retry_max_attempts=ATTEMPTS,
            connect_timeout=CONNECT_TIMEOUT_S,
            readwrite_timeout=READ_TIMEOUT_S,
        )
        return oss.Client(config)


@contextmanager
def _errors(permission: str) -> Iterator[None]:
    try:
        yield
    except BucketError as error:
        raise ApiError(error.code or "NoAnswer", str(error), "other", permission) from error
    except failures.BaseError as error:
        raise _translate(error, permission) from error


def _translate(error: Exception, permission: str) -> ApiError:
    """The cause inside the SDK's wrappers."""
    cause: BaseException = error
    while isinstance(inner := getattr(cause, "unwrap", lambda: None)(), BaseException):
        cause = inner
    if isinstance(cause, failures.ServiceError):
        code = str(cause.code)
        return ApiError(code, str(cause.message), "denied" if code == "AccessDenied" else "other", permission)
    if isinstance(cause, CredentialsError):
        return ApiError("NoCredentials", str(cause), "credentials", permission)
    return ApiError("NoAnswer", str(cause), "throttled", permission)
