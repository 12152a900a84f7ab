"""Dated facts that ship with the project: instance types, regions, models. Looked up by name; no I/O.

A fact that is not known is None ("unknown"), never a guess and never zero.
"""

from __future__ import annotations

from provision.catalog.instances import INSTANCE_TYPES, DiskRules, InstanceType, Price
from provision.catalog.models import MODELS, CatalogModel
from provision.catalog.regions import REGIONS

__all__ = [
    "INSTANCE_TYPES",
    "MODELS",
    "REGIONS",
    "CatalogModel",
    "DiskRules",
    "InstanceType",
    "Price",
    "counterpart",
    "instance_types",
]


def instance_types(cloud: str) -> list[InstanceType]:
    """The types of one cloud, cheapest first; a type without a known price after those that have one,
    smaller GPUs first."""
    found = [item for item in INSTANCE_TYPES.values() if item.cloud == cloud]
    return sorted(found, key=_cost_rank)


def counterpart(item: InstanceType, cloud: str) -> str | None:
    """Name of the type of `cloud` most like `item`: as many GPUs, nearest memory."""
    same = [other for other in instance_types(cloud) if other.gpu_count == item.gpu_count]
    if not same:
        return None
    return min(same, key=lambda other: abs(other.gpu.memory_bytes - item.gpu.memory_bytes)).name


def _cost_rank(item: InstanceType) -> tuple[bool, float, int, int, int]:
    price = item.price.usd_per_hour if item.price else 0.0
    return (item.price is None, price, item.gpu.memory_bytes * item.gpu_count, item.ram_gib, item.vcpus)
