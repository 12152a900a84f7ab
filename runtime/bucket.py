"""Object stores: one interface over S3 and OSS, for the mailbox, for weights, and for emptying a bucket.

Keys are relative to the bucket. Clients come from the clouds' own SDKs (boto3, alibabacloud-oss-v2), which find the
user's credentials on a laptop and the instance role's on a VM.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


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


class Bucket(Protocol):
    """One bucket. Every method raises BucketError; a missing object is None or no item, not an error."""

    def get(self, key: str) -> bytes | None: ...

    def read(self, key: str, start: int, end: int) -> bytes:
        """Bytes start…end-1. Raises BucketError when the object is missing or shorter."""
        ...

    def put(self, key: str, data: bytes) -> None: ...

    def upload(self, key: str, path: str) -> None:
        """A file of any size, in parts where it is large."""
        ...

    def blobs(self, prefix: str = "") -> Iterator[Blob]:
        """Objects whose key begins with `prefix`, by key."""
        ...

    def delete(self, keys: list[str]) -> None: ...
