"""Which image a VM boots from, and what can be expected of it. Pure.

AWS publishes the newest image's id under names in SSM's parameter store; Alibaba Cloud is asked for the newest system
image of a name that the instance type can boot. The id that was found is stored with the VM and never looked up again
for it: a newer image must not replace a running machine.

Confirmed in public code and documents: the parameter's name, the name pattern of the system images, the metadata token
of cloud-init. Not yet confirmed on a real account: the driver's version on either cloud, and the name of Alibaba
Cloud's images that boot by UEFI only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from provision.catalog import InstanceType
from provision.spec import DeploymentSpec

# Ubuntu 24.04 with NVIDIA's open driver, CUDA and the SSM agent; about 50 GiB of its disk are used.
AWS_PARAMETER = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
AWS_NAME = "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) *"  # the same image, found by its name
AWS_OWNER = "amazon"
ALICLOUD_NAME = r"^ubuntu_24_04_x64_20G_alibase_.*\.vhd$"
ALICLOUD_UEFI_NAME = r"^ubuntu_24_04_.*x64.*\.vhd$"  # the query by instance type leaves those that it can boot
TOKEN_CLOUD_INIT = (23, 1)  # the first cloud-init that sends Alibaba Cloud's metadata token (its pull request 1865)
UBUNTU_CLOUD_INIT = {"20.04": (22, 4), "22.04": (23, 1), "24.04": (24, 1)}  # at least, with the image's updates
DEBIAN_CLOUD_INIT = {"11": (20, 4), "12": (22, 4), "13": (25, 1)}

DRIVER_INSTALL_MINUTES = 10  # Alibaba Cloud's script on a first boot, with a restart; not measured here

Driver = Literal["ready", "install", "unknown"]
Boot = Literal["legacy-bios", "uefi", "uefi-preferred", "unknown"]


@dataclass(frozen=True, slots=True)
class ImageChoice:
    """How to find an image: by `id`, by the name of an SSM parameter, or by a pattern of names (one of the three).

    `user`: who may log in by SSH. `driver`: whether NVIDIA's driver is on it, or is installed at the first boot.
    """

    user: str
    driver: Driver
    id: str | None = None
    parameter: str | None = None
    name_regex: str | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """One image as its cloud describes it. `size_gib`: the smallest disk that it can boot from; None = unknown."""

    id: str
    name: str
    architecture: str = "x86_64"
    boot: Boot = "unknown"
    size_gib: int | None = None
    cloud_init: bool | None = None  # whether user-data is read at all


def choose_image(spec: DeploymentSpec, instance: InstanceType) -> ImageChoice:
    """The spec's own image, else the cloud's newest that has, or can be given, the driver.

    Alibaba Cloud's system images log in as root; whether an image of one's own has a driver is not known.
    """
    aws = spec.cloud == "aws"
    user = "ubuntu" if aws else "root"
    if spec.image is not None:
        return ImageChoice(user, "unknown", id=spec.image)
    if aws:
        return ImageChoice(user, "ready", parameter=AWS_PARAMETER)
    pattern = ALICLOUD_UEFI_NAME if instance.needs_uefi else ALICLOUD_NAME
    return ImageChoice(user, "install", name_regex=pattern)


def cloud_init_of(name: str) -> tuple[int, int] | None:
    """(major, minor) of the oldest cloud-init that an image of this name can have; None = unknown."""
    if found := re.search(r"ubuntu[_ /-]*(\d\d)[_.](\d\d)", name, re.IGNORECASE):
        return UBUNTU_CLOUD_INIT.get(f"{found[1]}.{found[2]}")
    if found := re.search(r"debian[_ /-]*(\d+)", name, re.IGNORECASE):
        return DEBIAN_CLOUD_INIT.get(found[1])
    return None


def requires_token(cloud: str, name: str) -> bool:
    """Whether metadata may be closed to requests without a token.

    On AWS always. On Alibaba Cloud an older cloud-init would then find no metadata, and the user-data would never run:
    an image that is not known to be newer keeps the open mode.
    """
    if cloud == "aws":
        return True
    version = cloud_init_of(name)
    return version is not None and version >= TOKEN_CLOUD_INIT
