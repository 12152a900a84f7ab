"""One small object store over HTTP that speaks what our code uses of S3 and of OSS, in a thread.

Both ways to name a bucket (host and path), V4 signatures of both clouds, several credentials with prefix policies, a
record of every request and of every byte that was served, and faults on demand. Its rules follow the stores' API
references: a missing object is 404 only for who may list the bucket, ranges are HTTP's, ETags of parts end in -N.

    with ObjectStore(region="eu-west-1") as store:
        store.create_bucket("b")
        bucket = open_bucket("aws", "eu-west-1", "b", store.url("b"))   # with OWNER's keys in the environment
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property

import crcmod

from tests.lab.http_server import HttpServer
from tests.lab.store_api import StoreApi

EVERYTHING = ("",)
_crc64 = crcmod.mkCrcFun(0x142F0E1EBA9EA3693, initCrc=0, rev=True, xorOut=2**64 - 1)


@dataclass(frozen=True, slots=True)
class Credential:
    """A key and what it may do, as prefixes of keys. `listing`: prefixes that may be listed."""

    access_key: str
    secret: str
    token: str | None = None
    read: tuple[str, ...] = EVERYTHING
    write: tuple[str, ...] = EVERYTHING
    listing: tuple[str, ...] = EVERYTHING
    delete: tuple[str, ...] = EVERYTHING

    def environment(self) -> dict[str, str]:
        """For boto3 and for the OSS client alike."""
        found = {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret}
        found |= {"OSS_ACCESS_KEY_ID": self.access_key, "OSS_ACCESS_KEY_SECRET": self.secret}
        if self.token:
            found |= {"AWS_SESSION_TOKEN": self.token, "OSS_SESSION_TOKEN": self.token}
        return found


OWNER = Credential("AKOWNER", "secret-of-the-owner")


def vm_role(weights: tuple[str, ...] = ()) -> Credential:
    """A deployment's machine: reads release, secrets, bundle and `weights` (prefixes), writes its status."""
    read = ("release/", "secrets/", "bundle/", *weights)
    return Credential("AKROLE", "secret-of-the-role", "token-of-the-role", read, ("status/",), EVERYTHING, ())


@dataclass(frozen=True)
class Stored:
    """One object. `crc32`: base64, where the uploader sent it for the whole object."""

    data: bytes
    etag: str
    crc32: str | None = None

    @cached_property
    def crc64(self) -> int:
        """OSS's: ECMA-182, reflected."""
        return int(_crc64(self.data))


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    bucket: str
    key: str
    query: str
    status: int
    access_key: str | None


@dataclass
class Faults:
    """How the store misbehaves; may be changed at any time. `keys`: only bodies of these (all when empty)."""

    cut_after: int | None = None  # bytes of each longer body, then the connection ends
    bytes_per_s: float | None = None
    busy: int = 0  # so many next requests are answered 503
    refuse_all: str | None = None  # with 403 and this code, as PublicEndpointForbidden
    closed_to: tuple[str, str] | None = None  # access key; how buckets begin whose objects are forbidden to it
    damaged: set[str] = field(default_factory=set)  # keys sent with their first byte changed
    keys: set[str] = field(default_factory=set)


class ObjectStore:
    """A context manager. `credentials` may grow while it runs."""

    def __init__(self, region: str, credentials: tuple[Credential, ...] = (OWNER,), host: str = "127.0.0.1") -> None:
        self.region = region
        self.credentials = {credential.access_key: credential for credential in credentials}
        self.faults = Faults()
        self.buckets: dict[str, dict[str, Stored]] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.upload_keys: dict[str, tuple[str, str]] = {}  # by upload: bucket, key
        self.requests: list[Request] = []
        self.served: dict[str, list[tuple[int, int]]] = defaultdict(list)  # by bucket/key: start, end of each body
        self.sending = 0  # bodies on their way, not yet in `served`
        self.lock = threading.RLock()
        self.stopped = threading.Event()
        self._server = HttpServer(type("BoundApi", (StoreApi,), {"store": self}), host)

    def __enter__(self) -> ObjectStore:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.stop()

    @property
    def address(self) -> tuple[str, int]:
        return self._server.host, self._server.port

    def url(self, bucket: str) -> str:
        """Base URL of a bucket, by path: what `Vm.endpoint` holds."""
        return f"{self._server.url}/{bucket}"

    def create_bucket(self, name: str) -> None:
        self.buckets.setdefault(name, {})

    def put(self, bucket: str, key: str, data: bytes) -> None:
        with self.lock:
            self.buckets[bucket][key] = self.stored(data)

    @staticmethod
    def stored(data: bytes, *, etag: str | None = None, crc32: str | None = None) -> Stored:
        return Stored(data, etag or hashlib.md5(data).hexdigest(), crc32)

    def note(self, method: str, bucket: str, key: str, query: str, status: int, access_key: str | None) -> None:
        with self.lock:
            self.requests.append(Request(method, bucket, key, query, status, access_key))

    def get(self, bucket: str, key: str) -> bytes | None:
        with self.lock:
            found = self.buckets[bucket].get(key)
            return None if found is None else found.data

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(key for key in self.buckets[bucket] if key.startswith(prefix))

    def wait_sent(self, deadline_s: float = 10.0) -> None:
        """Until every body that a client may have read in full is in `served`."""
        end = time.monotonic() + deadline_s
        while self.sending:
            assert time.monotonic() < end, f"a body is still on its way after {deadline_s} s"
            threading.Event().wait(0.005)

    def bytes_served(self, bucket: str, key: str) -> int:
        with self.lock:
            return sum(end - start for start, end in self.served[f"{bucket}/{key}"])

    def served_again(self, bucket: str, key: str) -> int:
        """Bytes that were served more than once."""
        with self.lock:
            again = reached = 0
            for start, end in sorted(self.served[f"{bucket}/{key}"]):
                again += max(0, min(end, reached) - start)
                reached = max(reached, end)
            return again
