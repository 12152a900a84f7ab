"""The mailbox: one private folder per deployment, the channel between the user's side and the machine's.

On a cloud it is a bucket; on `local` and `host` a folder with the same layout:

    release/current.json             Current: which release the machine should run   user writes, machine reads
    release/<id>/deployment.json     runtime.deployment.Deployment                   user writes, machine reads
    release/<id>/*.whl               the wheel of this release (clouds and hosts)    user writes, machine reads
    release/<id>/spec.json           the spec, without secrets (hosts)               user writes, user reads
    release/life.json                Life: when the machine ends by itself           user writes, machine reads
    release/keys.json                [ApiKey]                                        user writes, machine reads
    release/asked.json               Asked: who gave the last order                  user writes, machine reads
    release/lock.json                who works on the deployment (provision.lease)   user writes, user reads
    bundle/wheels/index.json         {file name: SHA-256} (egress: bundle)           user writes, machine reads
    bundle/wheels/*.whl              every wheel that the machine installs           user writes, machine reads
    secrets/hub.json                 {"token": …}                                    user writes, machine reads
    secrets/tls.json                 {"certificate": …, "key": …} in PEM (tls: own)  user writes, machine reads
    status/status.json               Status                                          machine writes, user reads
    status/identity.json             {instance_id, ssh_host_key, certificate}        machine writes, user reads
    status/built.json                Built: versions that a release runs on           machine writes, user reads
    status/releases.json             [ReleaseEntry], newest first                    machine writes, user reads
    status/logs/                     logs                                            machine writes, user reads
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import msgspec

from runtime.bucket import Bucket
from runtime.deployment import Note

T = TypeVar("T")
CURRENT = "release/current.json"
KEYS = "release/keys.json"
LIFE = "release/life.json"
ASKED = "release/asked.json"
LOCK = "release/lock.json"
BUNDLE_WHEELS = "bundle/wheels/"
BUNDLE_INDEX = BUNDLE_WHEELS + "index.json"
HUB_SECRET = "secrets/hub.json"
TLS_SECRET = "secrets/tls.json"
STATUS = "status/status.json"
IDENTITY = "status/identity.json"
RELEASES = "status/releases.json"
BUILT = "status/built.json"
LOGS = "status/logs/"

PHASES = ("python", "disk", "driver", "runtime", "weights", "load", "serve")
Phase = Literal["python", "disk", "driver", "runtime", "weights", "load", "serve", "ready", "stopped"]


def release_key(release: str) -> str:
    """Key of a release's `deployment.json`."""
    return f"release/{release}/deployment.json"


def spec_key(release: str) -> str:
    """Key of what a release on a host was asked to be, for other laptops. The machine does not read it."""
    return f"release/{release}/spec.json"


def wheel_key(release: str, file_name: str) -> str:
    """Key of a release's wheel. pip reads version and tags from the file's name, so it is kept."""
    return f"release/{release}/{file_name}"


class Current(Note, frozen=True):
    """`release/current.json`: what the machine should run now."""

    release: str
    deployment: str  # key of its deployment.json
    keys: str = KEYS
    wheel: str | None = None  # key of the wheel; None = the version already installed
    sha256: str | None = None
    index_url: str | None = None


class Life(Note, frozen=True):
    """`release/life.json`. Not part of a release: `extend` must not look like a redeploy.

    `expires_at`: seconds since the epoch when the cloud's timer deletes the machine, which then switches itself off as
    a backstop; None = never. `idle_stop_s`: seconds without a request until it stops; 0 = never. `woken_at`: seconds
    since the epoch when it was switched on again after a stop.
    """

    expires_at: int | None = None
    idle_stop_s: int = 0
    woken_at: int | None = None


class Asked(Note, frozen=True):
    """`release/asked.json`: who gave the last order, for the machine's own journal. No part of a release: another
    person is no reason to deploy anew. `at`: seconds since the epoch."""

    by: str
    command: str
    at: float


class Identity(Note, frozen=True):
    """`status/identity.json`: what a client pins for this instance. `certificate` is PEM, None without TLS;
    `ssh_host_key` is one line of the form "ssh-ed25519 AAAA…"."""

    instance_id: str
    ssh_host_key: str | None = None
    certificate: str | None = None


class Status(Note, frozen=True):
    """`status/status.json`: how far the machine is. `error` and `hint` are set when the phase has failed."""

    instance_id: str
    release: str
    phase: Phase
    updated_at: float  # seconds since the epoch
    percent: float | None = None
    bytes: int | None = None
    eta_s: float | None = None
    error: str | None = None
    hint: str | None = None
    held_s: float | None = None  # how long requests waited when this release took over; None when none had to
    schema: int = 1


class Built(Note, frozen=True):
    """`status/built.json`: what the release that became ready last really runs on. None = not there, or not known.

    `torch`, `transformers`: versions; `driver`: NVIDIA's, on a GPU; `model_commit`: what the revision stood for.
    """

    release: str
    model_commit: str | None = None
    torch: str | None = None
    transformers: str | None = None
    driver: str | None = None


class ReleaseEntry(Note, frozen=True):
    """One release that the machine keeps. `wheel`: the first digits of its wheel's SHA-256, None = the version that was
    there before. `ready_at`: seconds since the epoch when it served last, None = it never has."""

    release: str
    state: Literal["serving", "ready", "failed", "new"]
    model: str
    max_model_len: int
    dtype: str
    quantization: str | None = None
    wheel: str | None = None
    ready_at: float | None = None
    error: str | None = None


def encode_status(status: Status) -> bytes:
    return msgspec.json.encode(status)


def decode_status(data: bytes) -> Status:
    return msgspec.json.decode(data, type=Status)


def decode_releases(data: bytes) -> list[ReleaseEntry]:
    return msgspec.json.decode(data, type=list[ReleaseEntry])


def decode_built(data: bytes) -> Built:
    return msgspec.json.decode(data, type=Built)


def decode_current(data: bytes) -> Current:
    return msgspec.json.decode(data, type=Current)


def decode_life(data: bytes) -> Life:
    return msgspec.json.decode(data, type=Life)


def decode_asked(data: bytes) -> Asked:
    return msgspec.json.decode(data, type=Asked)


def decode_identity(data: bytes) -> Identity:
    return msgspec.json.decode(data, type=Identity)


def decode_if_sound(data: bytes | None, decode: Callable[[bytes], T]) -> T | None:
    """None for an object that is missing or not what it should be: a half-made machine may have written it."""
    if data is None:
        return None
    try:
        return decode(data)
    except msgspec.DecodeError:
        return None


class Mailbox(Protocol):
    """Objects by key. `get` returns None for a missing object; `put` is atomic."""

    def get(self, key: str) -> bytes | None: ...

    def put(self, key: str, data: bytes) -> None: ...

    def keys(self, prefix: str) -> list[str]: ...


class FolderMailbox:
    """The mailbox of `local` and `host`: files under `root`, mode 0600, replaced atomically."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, key: str) -> bytes | None:
        try:
            return (self.root / key).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, key: str, data: bytes) -> None:
        write_atomic(self.root / key, data)

    def keys(self, prefix: str) -> list[str]:
        found = (p for p in self.root.rglob("*") if p.is_file() and not p.name.startswith("."))
        return sorted(key for p in found if (key := p.relative_to(self.root).as_posix()).startswith(prefix))


class BucketMailbox:
    """The mailbox of a cloud deployment. Every method raises runtime.bucket.BucketError.

    A role that may not list the bucket is told AccessDenied for an object that is missing: `get` can answer None only
    where listing is allowed.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def get(self, key: str) -> bytes | None:
        return self._bucket.get(key)

    def put(self, key: str, data: bytes) -> None:
        self._bucket.put(key, data)

    def keys(self, prefix: str) -> list[str]:
        return [blob.key for blob in self._bucket.blobs(prefix)]

    def delete(self, keys: list[str]) -> None:
        """Keys that do not exist are fine."""
        if keys:
            self._bucket.delete(keys)


def write_atomic(path: Path, data: bytes) -> None:
    """A reader sees the old content or the new one, never half; folders 0700, file 0600."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".new")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
