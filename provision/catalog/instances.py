"""GPU instance types of both clouds.

Sources: Alibaba Cloud's family page of GPU-accelerated instances; AWS's instance type pages. GPU memory is
the total that torch reports on such a card (a little under the number on the box), typical values.

Prices are estimates to choose by, not offers: AWS list prices on demand, Linux, us-east-1, as remembered from
2025-07 (after that year's cut for P4 and P5); Alibaba Cloud pay-as-you-go in cn-hangzhou, rough, converted at
7.2 CNY per USD. Where no figure is known the price is None. Region, spot and discounts change all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from runtime.sizing import GIB, Gpu, Machine

PRICE_DATE = "2025-07"
_SYSTEM_SHARE_BYTES = 2 * GIB  # kernel, agent and cloud's own daemons


@dataclass(frozen=True, slots=True)
class Price:
    """An estimate of the on-demand price in US dollars per hour."""

    usd_per_hour: float
    date: str
    source: str
    label: str = "estimate"


@dataclass(frozen=True, slots=True)
class DiskRules:
    """`categories`: disk kinds that the type can boot from, preferred first. `local_gib`: size of the NVMe
    that comes with the machine and is lost when it stops, 0 = none."""

    categories: tuple[str, ...]
    local_gib: int = 0


@dataclass(frozen=True, slots=True)
class InstanceType:
    """One purchasable machine. `ram_gib` is the host's memory in GiB."""

    name: str
    cloud: Literal["aws", "alicloud"]
    gpu: Gpu
    gpu_count: int
    vcpus: int
    ram_gib: int
    disk: DiskRules
    price: Price | None
    needs_uefi: bool = False

    def machine(self) -> Machine:
        ram = self.ram_gib * GIB
        return Machine(
            name=self.name,
            ram_bytes=ram,
            free_ram_bytes=ram - _SYSTEM_SHARE_BYTES,
            cpus=self.vcpus,
            gpu=self.gpu,
            gpu_count=self.gpu_count,
        )


def _gpu(kind: str, memory_gib: float, major: int, minor: int) -> Gpu:
    return Gpu(kind, int(memory_gib * GIB), (major, minor))


T4 = _gpu("T4", 14.56, 7, 5)
V100_16 = _gpu("V100 16GB", 15.77, 7, 0)
V100_32 = _gpu("V100 32GB", 31.73, 7, 0)
A10 = _gpu("A10", 22.49, 8, 6)
A10G = _gpu("A10G", 22.19, 8, 6)
A100_40 = _gpu("A100 40GB", 39.39, 8, 0)
A100_80 = _gpu("A100 80GB", 79.25, 8, 0)
L4 = _gpu("L4", 22.49, 8, 9)
L20 = _gpu("L20", 44.53, 8, 9)
L40S = _gpu("L40S", 44.99, 8, 9)
H20 = _gpu("H20", 95.1, 9, 0)
H100 = _gpu("H100", 79.1, 9, 0)
H200 = _gpu("H200", 139.7, 9, 0)
B200 = _gpu("B200", 178.3, 10, 0)

_AWS_SOURCE = "AWS list price, on demand, us-east-1"
_ALI_SOURCE = "Alibaba Cloud pay-as-you-go, cn-hangzhou, rough"
_EBS = ("gp3",)
_ESSD = ("cloud_essd", "cloud_auto")  # gn7i, gn7e, gn8*: the ESSD family only
_OLDER = ("cloud_essd", "cloud_efficiency", "cloud_ssd")

# name, GPU, GPUs, vCPUs, host RAM in GiB, local NVMe in GiB, USD per hour (None = unknown)
_AWS: tuple[tuple[str, Gpu, int, int, int, int, float | None], ...] = (
    ("g4dn.xlarge", T4, 1, 4, 16, 116, 0.526),
    ("g4dn.2xlarge", T4, 1, 8, 32, 209, 0.752),
    ("g4dn.4xlarge", T4, 1, 16, 64, 209, 1.204),
    ("g4dn.8xlarge", T4, 1, 32, 128, 838, 2.176),
    ("g4dn.16xlarge", T4, 1, 64, 256, 838, 4.352),
    ("g4dn.12xlarge", T4, 4, 48, 192, 838, 3.912),
    ("g4dn.metal", T4, 8, 96, 384, 1676, 7.824),
    ("g5.xlarge", A10G, 1, 4, 16, 232, 1.006),
    ("g5.2xlarge", A10G, 1, 8, 32, 419, 1.212),
    ("g5.4xlarge", A10G, 1, 16, 64, 558, 1.624),
    ("g5.8xlarge", A10G, 1, 32, 128, 838, 2.448),
    ("g5.16xlarge", A10G, 1, 64, 256, 1769, 4.096),
    ("g5.12xlarge", A10G, 4, 48, 192, 3539, 5.672),
    ("g5.24xlarge", A10G, 4, 96, 384, 3539, 8.144),
    ("g5.48xlarge", A10G, 8, 192, 768, 7078, 16.288),
    ("g6.xlarge", L4, 1, 4, 16, 232, 0.8048),
    ("g6.2xlarge", L4, 1, 8, 32, 419, 0.9776),
    ("g6.4xlarge", L4, 1, 16, 64, 558, 1.3232),
    ("g6.8xlarge", L4, 1, 32, 128, 838, 2.0144),
    ("g6.16xlarge", L4, 1, 64, 256, 1750, 3.3968),
    ("g6.12xlarge", L4, 4, 48, 192, 3501, 4.6016),
    ("g6.24xlarge", L4, 4, 96, 384, 3501, 6.6752),
    ("g6.48xlarge", L4, 8, 192, 768, 7003, 13.3504),
    ("g6e.xlarge", L40S, 1, 4, 32, 232, 1.861),
    ("g6e.2xlarge", L40S, 1, 8, 64, 419, 2.24208),
    ("g6e.4xlarge", L40S, 1, 16, 128, 558, 3.00424),
    ("g6e.8xlarge", L40S, 1, 32, 256, 838, 4.52856),
    ("g6e.16xlarge", L40S, 1, 64, 512, 1769, 7.57719),
    ("g6e.12xlarge", L40S, 4, 48, 384, 3539, 10.49264),
    ("g6e.24xlarge", L40S, 4, 96, 768, 3539, 15.06559),
    ("g6e.48xlarge", L40S, 8, 192, 1536, 7078, 30.13118),
    ("p4d.24xlarge", A100_40, 8, 96, 1152, 7450, 21.957),
    ("p4de.24xlarge", A100_80, 8, 96, 1152, 7450, 27.447),
    ("p5.4xlarge", H100, 1, 16, 256, 3576, 6.88),
    ("p5.48xlarge", H100, 8, 192, 2048, 28610, 55.04),
    ("p5e.48xlarge", H200, 8, 192, 2048, 28610, None),
    ("p5en.48xlarge", H200, 8, 192, 2048, 28610, 63.296),
    ("p6-b200.48xlarge", B200, 8, 192, 2048, 28610, 113.933),
)

_ALICLOUD: tuple[tuple[str, Gpu, int, int, int, float | None], ...] = (
    ("gn6i-c4g1.xlarge", T4, 1, 4, 15, 1.62),
    ("gn6i-c8g1.2xlarge", T4, 1, 8, 31, 1.95),
    ("gn6i-c16g1.4xlarge", T4, 1, 16, 62, 2.36),
    ("gn6i-c24g1.6xlarge", T4, 1, 24, 93, 2.60),
    ("gn6i-c40g1.10xlarge", T4, 1, 40, 155, None),
    ("gn6i-c24g1.12xlarge", T4, 2, 48, 186, 5.20),
    ("gn6i-c24g1.24xlarge", T4, 4, 96, 372, 10.40),
    ("gn6v-c8g1.2xlarge", V100_16, 1, 8, 32, 3.68),
    ("gn6v-c8g1.4xlarge", V100_16, 2, 16, 64, 7.35),
    ("gn6v-c8g1.8xlarge", V100_16, 4, 32, 128, 14.70),
    ("gn6v-c8g1.16xlarge", V100_16, 8, 64, 256, 29.40),
    ("gn6e-c12g1.3xlarge", V100_32, 1, 12, 92, None),
    ("gn6e-c12g1.6xlarge", V100_32, 2, 24, 184, None),
    ("gn6e-c12g1.12xlarge", V100_32, 4, 48, 368, None),
    ("gn6e-c12g1.24xlarge", V100_32, 8, 96, 736, None),
    ("gn7-c12g1.3xlarge", A100_40, 1, 12, 94, None),
    ("gn7-c13g1.13xlarge", A100_40, 4, 52, 378, None),
    ("gn7-c13g1.26xlarge", A100_40, 8, 104, 756, None),
    ("gn7i-c8g1.2xlarge", A10, 1, 8, 30, 1.35),
    ("gn7i-c16g1.4xlarge", A10, 1, 16, 60, 1.45),
    ("gn7i-c32g1.8xlarge", A10, 1, 32, 188, 1.80),
    ("gn7i-c48g1.12xlarge", A10, 1, 48, 310, None),
    ("gn7i-c56g1.14xlarge", A10, 1, 56, 346, None),
    ("gn7i-2x.8xlarge", A10, 2, 32, 128, 2.90),
    ("gn7i-c32g1.16xlarge", A10, 2, 64, 376, 3.60),
    ("gn7i-4x.8xlarge", A10, 4, 32, 128, 5.40),
    ("gn7i-4x.16xlarge", A10, 4, 64, 256, 5.80),
    ("gn7i-c32g1.32xlarge", A10, 4, 128, 752, 7.20),
    ("gn7i-8x.16xlarge", A10, 8, 64, 256, 10.80),
    ("gn7i-8x.32xlarge", A10, 8, 128, 512, 11.60),
    ("gn7e-c16g1.4xlarge", A100_80, 1, 16, 125, 4.83),
    ("gn7e-c16g1.8xlarge", A100_80, 2, 32, 250, 9.65),
    ("gn7e-c16g1.16xlarge", A100_80, 4, 64, 500, 19.30),
    ("gn7e-c16g1.32xlarge", A100_80, 8, 128, 1000, 38.60),
    ("gn8is.2xlarge", L20, 1, 8, 64, None),
    ("gn8is.4xlarge", L20, 1, 16, 128, None),
    ("gn8is-2x.8xlarge", L20, 2, 32, 256, None),
    ("gn8is-4x.16xlarge", L20, 4, 64, 512, None),
    ("gn8is-8x.32xlarge", L20, 8, 128, 1024, None),
    ("gn8v.4xlarge", H20, 1, 16, 96, None),
    ("gn8v.6xlarge", H20, 1, 24, 128, None),
    ("gn8v-2x.8xlarge", H20, 2, 32, 192, None),
    ("gn8v-2x.12xlarge", H20, 2, 48, 256, None),
    ("gn8v-4x.8xlarge", H20, 4, 32, 384, None),
    ("gn8v-4x.24xlarge", H20, 4, 96, 512, None),
    ("gn8v-8x.16xlarge", H20, 8, 64, 768, None),
    ("gn8v-8x.48xlarge", H20, 8, 192, 1024, None),
    ("ebmgn8v.48xlarge", H20, 8, 192, 1024, None),
)


def _price(usd: float | None, source: str) -> Price | None:
    return None if usd is None else Price(usd, PRICE_DATE, source)


def _all() -> dict[str, InstanceType]:
    found = [
        InstanceType(name, "aws", gpu, count, cpus, ram, DiskRules(_EBS, nvme), _price(usd, _AWS_SOURCE))
        for name, gpu, count, cpus, ram, nvme, usd in _AWS
    ]
    for short, gpu, count, cpus, ram, usd in _ALICLOUD:
        disk = DiskRules(_OLDER if short.startswith("gn6") else _ESSD)
        found.append(
            InstanceType(
                f"ecs.{short}", "alicloud", gpu, count, cpus, ram, disk, _price(usd, _ALI_SOURCE),
                needs_uefi=short.startswith("ebmgn8v"),
            )
        )  # fmt: skip
    return {item.name: item for item in found}


INSTANCE_TYPES: dict[str, InstanceType] = _all()
