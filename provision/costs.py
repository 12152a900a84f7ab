"""What a deployment costs, and how long the weights take to arrive: estimates, labelled as such. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from provision.catalog import InstanceType
from provision.spec import DeploymentSpec

HOURS_PER_MONTH = 730
# AWS list prices, us-east-1, as remembered from 2025-07.
GP3_USD_PER_GIB_MONTH = 0.08
PUBLIC_IPV4_USD_PER_HOUR = 0.005
NAT_USD_PER_HOUR = 0.045

# Alibaba Cloud's list prices in mainland China, rough, as remembered from 2025-07 and converted at 7.2 CNY per USD.
# An address bound to an instance has no fee but its traffic; one that nobody uses has. Other regions are unknown here.
ALICLOUD_DISK_USD_PER_GIB_HOUR = {"cloud_essd": 0.0021 / 7.2, "cloud_auto": 0.0021 / 7.2}
ALICLOUD_IDLE_ADDRESS_USD_PER_HOUR = 0.02 / 7.2
ALICLOUD_NAT_USD_PER_HOUR = 0.195 / 7.2
ALICLOUD_TRAFFIC_USD_PER_GB = 0.8 / 7.2
ALICLOUD_SOURCE = "Alibaba Cloud list price, mainland China, rough, 2025-07, estimate"
AWS_SOURCE = "AWS list price, us-east-1, 2025-07, estimate"
BUCKET_USD_PER_HOUR = 0.0001  # some megabytes of status, logs and wheels: under ten cents a month

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
    """The instance first, then disks, address and way out."""
    price = instance.price
    source = f"{price.source}, {price.date}, {price.label}" if price else "unknown"
    items = [CostItem(instance.name, price.usd_per_hour if price else None, source)]
    items += _disks(spec, instance.disk.categories[0], disk_gib)
    if spec.endpoint == "public":
        items.append(_address(spec, used=True))
    elif spec.egress == "nat" and spec.vpc_id is None:
        items.append(_way_out(spec))
    return Cost(tuple(items), spec.ttl_seconds)


def residual_items(spec: DeploymentSpec, disk_gib: int, *, stopped: bool) -> tuple[CostItem, ...]:
    """What still bills without the machine: after the TTL has deleted it, or while it is `stopped`.

    A stopped machine keeps its disks; a deleted one keeps only the disk of the weights. Address, way out and mailbox
    stay in both cases, until `deployctl down`.
    """
    category = _category(spec)
    items = list(_disks(spec, category, disk_gib)) if stopped else list(_weights_disk(spec, category))
    if spec.endpoint == "public":
        items.append(_address(spec, used=False))
    elif spec.egress == "nat" and spec.vpc_id is None:
        items.append(_way_out(spec))
    if spec.mailbox != "cloud_assistant":
        items.append(CostItem("mailbox bucket", BUCKET_USD_PER_HOUR, "a few megabytes, estimate"))
    return tuple(items)


def _disks(spec: DeploymentSpec, category: str, disk_gib: int) -> Iterator[CostItem]:
    yield _disk(spec, f"disk {disk_gib} GiB", category, disk_gib)
    yield from _weights_disk(spec, category)


def _weights_disk(spec: DeploymentSpec, category: str) -> Iterator[CostItem]:
    if (size := spec.weights_disk_gib) is not None:
        yield _disk(spec, f"weights disk {size} GiB", category, size)


def _disk(spec: DeploymentSpec, name: str, category: str, size: int) -> CostItem:
    if spec.cloud == "aws":
        return CostItem(name, size * GP3_USD_PER_GIB_MONTH / HOURS_PER_MONTH, AWS_SOURCE)
    rate = ALICLOUD_DISK_USD_PER_GIB_HOUR.get(category)
    return _alicloud(spec, name, None if rate is None else size * rate)


def _address(spec: DeploymentSpec, *, used: bool) -> CostItem:
    """AWS charges every public address; Alibaba Cloud the unused ones, and the traffic of the others."""
    if spec.cloud == "aws":
        return CostItem("public address", PUBLIC_IPV4_USD_PER_HOUR, AWS_SOURCE)
    if used:
        name = f"public address, its traffic apart (about ${ALICLOUD_TRAFFIC_USD_PER_GB:.2f} per GB sent)"
        return _alicloud(spec, name if _is_mainland(spec) else "public address and its traffic", 0.0)
    return _alicloud(spec, "unused public address", ALICLOUD_IDLE_ADDRESS_USD_PER_HOUR)


def _way_out(spec: DeploymentSpec) -> CostItem:
    """The NAT gateway with its address; what passes through it costs extra on both clouds."""
    if spec.cloud == "aws":
        return CostItem("NAT gateway", NAT_USD_PER_HOUR + PUBLIC_IPV4_USD_PER_HOUR, AWS_SOURCE)
    return _alicloud(spec, "NAT gateway", ALICLOUD_NAT_USD_PER_HOUR)


def _alicloud(spec: DeploymentSpec, name: str, usd: float | None) -> CostItem:
    known = usd if _is_mainland(spec) else None
    return CostItem(name, known, "unknown" if known is None else ALICLOUD_SOURCE)


def _is_mainland(spec: DeploymentSpec) -> bool:
    region = spec.region or ""
    return region.startswith("cn-") and region != "cn-hongkong"


def _category(spec: DeploymentSpec) -> str:
    """The disk kind that most types of the spec's cloud boot from."""
    return "gp3" if spec.cloud == "aws" else "cloud_essd"


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
