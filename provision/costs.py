"""What a deployment costs, and how long the weights take to arrive: estimates, labelled as such. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from provision.catalog import InstanceType
from provision.spec import DeploymentSpec

HOURS_PER_MONTH = 730
# AWS list prices, us-east-1, as remembered from 2025-07.
GP3_USD_PER_GIB_MONTH = 0.08
PUBLIC_IPV4_USD_PER_HOUR = 0.005
NAT_USD_PER_HOUR = 0.045

ALICLOUD_DEFAULT_MBPS = 200  # the most that an address billed by traffic usually takes
AWS_DISK_BYTES_PER_S = 125_000_000  # gp3's baseline, below the network of every type in the catalog
ESSD_BYTES_PER_S = 350_000_000  # ESSD PL1


@dataclass(frozen=True, slots=True)
class CostItem:
    """One line of the bill, in US dollars per hour; None = unknown, not free."""

    name: str
    usd_per_hour: float | None
    source: str


@dataclass(frozen=True, slots=True)
class Cost:
    """All lines. Totals count the known ones, and are None when the instance itself is unknown."""

    items: tuple[CostItem, ...]
    ttl_seconds: int

    @property
    def usd_per_hour(self) -> float | None:
        if not self.items or self.items[0].usd_per_hour is None:
            return None
        return sum(item.usd_per_hour for item in self.items if item.usd_per_hour is not None)

    @property
    def usd_per_day(self) -> float | None:
        return None if self.usd_per_hour is None else self.usd_per_hour * 24

    @property
    def usd_until_ttl(self) -> float | None:
        """None also when there is no TTL."""
        if self.usd_per_hour is None or self.ttl_seconds == 0:
            return None
        return self.usd_per_hour * self.ttl_seconds / 3600

    @property
    def unknown(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.items if item.usd_per_hour is None)


def estimate_cost(spec: DeploymentSpec, instance: InstanceType, disk_gib: int) -> Cost:
    """The instance first, then disk, address and way out."""
    price = instance.price
    source = f"{price.source}, {price.date}, {price.label}" if price else "unknown"
    items = [CostItem(instance.name, price.usd_per_hour if price else None, source)]
    listed = "AWS list price, us-east-1, 2025-07, estimate"
    aws = spec.cloud == "aws"
    disk = disk_gib * GP3_USD_PER_GIB_MONTH / HOURS_PER_MONTH if aws else None
    items.append(CostItem(f"disk {disk_gib} GiB", disk, listed if aws else "unknown"))
    if spec.endpoint == "public":
        name = "public address" if aws else "public address and its traffic"
        items.append(CostItem(name, PUBLIC_IPV4_USD_PER_HOUR if aws else None, listed if aws else "unknown"))
    elif spec.egress == "nat":
        items.append(CostItem("NAT gateway", NAT_USD_PER_HOUR if aws else None, listed if aws else "unknown"))
    return Cost(tuple(items), spec.ttl_seconds)


def download_seconds(spec: DeploymentSpec, size: int) -> float | None:
    """Seconds to fetch `size` bytes of weights at the slowest part of the way; None on machines whose line
    is not known, and 0 for a folder that is already here."""
    kind = spec.model_ref.kind
    if kind in ("folder", "demo"):
        return 0.0
    if not spec.is_cloud:
        return None
    if spec.cloud == "aws":
        return size / AWS_DISK_BYTES_PER_S
    if kind == "oss" or spec.egress == "bundle":
        return size / ESSD_BYTES_PER_S
    return size / ((spec.bandwidth_mbps or ALICLOUD_DEFAULT_MBPS) * 1_000_000 / 8)
