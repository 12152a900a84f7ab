"""What a preflight asks a cloud, and what it was told. Pure data; the questions are answered in stacks/preflight.py.

An answer that could not be had is `Unknown` with the reason: it becomes a warning, never a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from provision.images import Image


@dataclass(frozen=True, slots=True)
class Unknown:
    """No answer: the API was denied, throttled or has none. `why` in the cloud's own words."""

    why: str


@dataclass(frozen=True, slots=True)
class QuotaQuestion:
    """One limit of the account that a deployment counts against.

    `service` and `code` as the cloud's quota API knows them; `code` None = the code is not known here. `need`: how much
    more this deployment takes, in `unit`. `dimensions`: Alibaba Cloud's filter of a quota that has one value per kind.
    """

    subject: str
    service: str
    code: str | None
    need: int
    unit: str
    dimensions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Quota:
    """The answer to one question. `used` counts what others than this deployment use now, in the question's unit."""

    question: QuotaQuestion
    limit: float | Unknown
    used: float | Unknown


@dataclass(frozen=True, slots=True)
class LivePrice:
    """What the cloud asks for the instance now, per hour. `currency` None = the account's: not named."""

    per_hour: float
    currency: str | None
    source: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that was learnt about one region for one spec.

    `offered`: zones that sell an instance type, by type. `network_zones`: zones in which a subnet can be made, whether
    or not they sell the type. `subnet_zones`: zones of the subnets that the spec's own network has; None = the network
    is ours. `running`: the machine exists, and needs neither stock nor an image any more. `disk_zone`: where the disk
    of weights is that was kept; None = none was. `may_use_store`: whether the account may use the object store from
    outside; None = it was not asked.
    """

    offered: Mapping[str, tuple[str, ...] | Unknown]
    network_zones: tuple[str, ...] | Unknown
    image: Image | Unknown
    price: LivePrice | Unknown
    quotas: tuple[Quota, ...] = ()
    subnet_zones: tuple[str, ...] | Unknown | None = None
    user_data_bytes: int | None = None
    running: bool = False
    disk_zone: str | Unknown | None = None
    may_use_store: bool | Unknown | None = None
