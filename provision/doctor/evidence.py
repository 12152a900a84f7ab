"""What is known about a deployment when something is wrong. What could not be asked is None or absent, and named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

STATUS = "status"  # the machine's own last words: error and hint
KERNEL = "kernel"
NVIDIA_SMI = "nvidia-smi"
CLOUD = "cloud"


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base: frozen, and an unknown field of a recorded case is an error."""


class Disk(Struct, frozen=True):
    """One file system. Bytes."""

    path: str
    size: int
    free: int


class Probe(Struct, frozen=True):
    """What the endpoint answered from here. `refused`: why no connection opens, None = one does; `tls`: why the
    handshake fails; `status`: of a request with the key."""

    refused: str | None = None
    tls: str | None = None
    status: int | None = None


class Evidence(Struct, frozen=True):
    """Everything that a rule may look at. Times in seconds.

    `life`, `phase`, `error`, `hint`: as `deployctl status` has them. `silent_s`: since the machine's last word, None
    without any. `logs`: newest lines by unit. `cloud`: what Pulumi or the cloud's API said. `unknown`: what could not
    be asked, and why.
    """

    name: str
    target: str
    life: str = "unknown"
    phase: str | None = None
    error: str | None = None
    hint: str | None = None
    silent_s: float | None = None
    age_s: float | None = None
    expires_in_s: float | None = None
    logs: Mapping[str, tuple[str, ...]] = {}
    kernel: tuple[str, ...] = ()
    nvidia_smi: str | None = None
    disks: tuple[Disk, ...] = ()
    memory_bytes: int | None = None
    free_memory_bytes: int | None = None
    clock_ahead_s: float | None = None
    clock_synchronised: bool | None = None
    endpoint: Probe | None = None
    caller: str | None = None
    allowed_cidrs: tuple[str, ...] = ()
    certificate_days: float | None = None
    cloud: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def is_ready(self) -> bool:
        return self.life == "ready"

    def lines(self, source: str) -> Iterator[str]:
        """The lines of one source, oldest first: STATUS, KERNEL, NVIDIA_SMI, CLOUD, or a unit's log."""
        if source == STATUS:
            yield from (text for text in (self.error, self.hint) if text)
        elif source == KERNEL:
            yield from self.kernel
        elif source == NVIDIA_SMI:
            yield from (self.nvidia_smi or "").splitlines()
        elif source == CLOUD:
            yield from (line for text in self.cloud for line in text.splitlines())
        else:
            yield from self.logs.get(source, ())


def decode_evidence(data: bytes) -> Evidence:
    """Raises msgspec.DecodeError."""
    return msgspec.json.decode(data, type=Evidence)
