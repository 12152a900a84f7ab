"""The rules of a preflight that look at plan, image, disks, user-data and price. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from provision.catalog import InstanceType
from provision.images import DRIVER_INSTALL_MINUTES, Image, ImageChoice, requires_token
from provision.planning import Plan
from provision.preflight.facts import LivePrice, Unknown
from provision.preflight.findings import Finding
from provision.spec import DeploymentSpec
from provision.user_data import MAX_BYTES
from runtime.sizing import GIB

WEIGHTS_MARGIN = 1.05  # files beside the weights, and the file system
SLOW_DOWNLOAD_S = 30 * 60
# The largest disk of each kind in GiB: AWS's and Alibaba Cloud's documents of 2025.
MAX_DISK_GIB = {
    "gp3": 65_536,
    "cloud_essd": 65_536,
    "cloud_auto": 65_536,
    "cloud_efficiency": 32_768,
    "cloud_ssd": 32_768,
}
ALICLOUD_MAX_SYSTEM_GIB = 2048
STORE_FORBIDDEN = "PublicEndpointForbidden"  # OSS's code for accounts made since 2025-03-20, in mainland regions
OTHER_IMAGE = "deployctl up --image <id>"


def check_plan(spec: DeploymentSpec, plan: Plan) -> Iterator[Finding]:
    """Fit, dtype against GPU, host RAM and download time: what sizing decided before any cloud was asked."""
    for reason in plan.reasons:
        better = plan.alternatives[0].instance_type if plan.alternatives else None
        yield Finding(
            "error", "plan", reason, f"deployctl plan --instance-type {better}" if better else "deployctl plan"
        )
    for warning in plan.warnings:
        yield Finding("warning", "plan", warning)
    if plan.fits:
        number = f"{plan.dtype}, {plan.quantization} weights" if plan.quantization else plan.dtype
        yield Finding("ok", "plan", f"{plan.model} fits {plan.instance_type} in {number}")
    yield from _download(spec, plan)


def _download(spec: DeploymentSpec, plan: Plan) -> Iterator[Finding]:
    if not plan.download_bytes:
        return
    size = f"{plan.download_bytes / GIB:.1f} GiB of weights"
    if plan.download_seconds is None:
        yield Finding("warning", "download", f"{size}; how long they take is unknown")
        return
    text = f"{size} take about {max(1, round(plan.download_seconds / 60))} min at best"
    if plan.download_seconds <= SLOW_DOWNLOAD_S or spec.model_ref.kind in ("s3", "oss"):
        yield Finding("ok", "download", text)
        return
    command = "deployctl weights push"
    yield Finding("warning", "download", f"{text}; a bucket in {spec.region} is faster for the second machine", command)


def check_image(
    spec: DeploymentSpec, instance: InstanceType, choice: ImageChoice, image: Image | Unknown
) -> Iterator[Finding]:
    """Whether the instance can boot it, whether it reads user-data, and where the driver comes from."""
    if isinstance(image, Unknown):
        wanted = choice.id or choice.parameter or choice.name_regex
        yield Finding("error", "image", f"{wanted} was not found ({image.why})", OTHER_IMAGE)
        return
    if image.architecture not in ("x86_64", "unknown"):
        text = f"{image.id} is built for {image.architecture}, and {instance.name} is x86_64"
        yield Finding("error", "image", text, OTHER_IMAGE)
        return
    if instance.needs_uefi and image.boot == "legacy-bios":
        text = f"{instance.name} boots by UEFI only, and {image.id} by BIOS only"
        yield Finding("error", "image", text, OTHER_IMAGE)
        return
    if image.cloud_init is False:
        yield Finding(
            "error", "image", f"{image.id} has no cloud-init, which starts everything", "deployctl up --image <id>"
        )
        return
    if instance.needs_uefi and image.boot == "unknown":
        yield Finding("warning", "image", f"whether {image.id} boots by UEFI, as {instance.name} must, is unknown")
    if not requires_token(spec.cloud, image.name):
        text = "its cloud-init may send no metadata token, so metadata stays open to requests without one"
        yield Finding("warning", "image", f"{image.id}: {text}", "deployctl up --image <an image with Ubuntu 24.04>")
    yield _driver(choice, image)


def _driver(choice: ImageChoice, image: Image) -> Finding:
    name = image.id if image.name in ("", image.id) else f"{image.id}, {image.name}"
    if choice.driver == "ready":
        return Finding("ok", "image", f"{name}, with NVIDIA's driver")
    if choice.driver == "install":
        text = f"{name}; the driver is installed at the first boot, about {DRIVER_INSTALL_MINUTES} min more"
        return Finding("ok", "image", text)
    return Finding("warning", "image", f"{image.id}: whether it has NVIDIA's driver is unknown; the machine checks it")


def check_disks(spec: DeploymentSpec, plan: Plan, instance: InstanceType, image: Image | Unknown) -> Iterator[Finding]:
    """Sizes against what the disk kind, the image and the weights need."""
    category = disk_category(instance)
    largest = ALICLOUD_MAX_SYSTEM_GIB if spec.cloud == "alicloud" else MAX_DISK_GIB[category]
    if plan.disk_gib > largest:
        text = f"{plan.disk_gib} GiB are needed, and a system disk of {category} has at most {largest}"
        yield Finding("error", "disk", text, f"deployctl up --disk-gib {largest} --weights-disk-gib {plan.disk_gib}")
    elif not isinstance(image, Unknown) and image.size_gib is not None and image.size_gib > plan.disk_gib:
        text = f"the image needs {image.size_gib} GiB, and the disk has {plan.disk_gib}"
        yield Finding("error", "disk", text, f"deployctl up --disk-gib {image.size_gib}")
    else:
        yield Finding("ok", "disk", f"{plan.disk_gib} GiB of {category}, encrypted")
    if spec.weights_disk_gib is None:
        return
    needed = -(-int(plan.download_bytes * WEIGHTS_MARGIN) // GIB)
    if spec.weights_disk_gib < needed:
        text = f"weights_disk_gib {spec.weights_disk_gib}: the weights need {needed}"
        yield Finding("error", "weights disk", text, f"deployctl up --weights-disk-gib {needed}")
    else:
        yield Finding("ok", "weights disk", f"{spec.weights_disk_gib} GiB of {category}, kept apart from the machine")


def disk_category(instance: InstanceType) -> str:
    """The disk kind that the type boots from, the catalog's first choice: some types take the ESSD family only."""
    return instance.disk.categories[0]


def check_user_data(size: int | None) -> Iterator[Finding]:
    """`size` in bytes before base64; None = it was not rendered."""
    if size is None:
        return
    if size > MAX_BYTES:
        yield Finding("error", "user-data", f"{size} bytes, and at most {MAX_BYTES} are sent")
    else:
        yield Finding("ok", "user-data", f"{size} of {MAX_BYTES} bytes")


def check_mailbox(spec: DeploymentSpec, may_use_store: bool | Unknown | None) -> Iterator[Finding]:
    """Whether deployctl and the machine can meet in a bucket."""
    if spec.mailbox == "cloud_assistant":
        text = "a folder of the machine, through Cloud Assistant: what it carries stays in the account's records"
        yield Finding("ok", "mailbox", text)
    elif isinstance(may_use_store, Unknown):
        text = (
            f"whether this account may use OSS from outside is unknown ({may_use_store.why}); its first object tells,"
            " before an address or a machine is bought"
        )
        yield Finding("warning", "mailbox", text)
    elif may_use_store is False:
        text = f"this account may not use OSS from outside ({STORE_FORBIDDEN})"
        yield Finding("error", "mailbox", text, "deployctl up --mailbox cloud_assistant")


def check_network(spec: DeploymentSpec) -> Iterator[Finding]:
    """What a network of one's own must bring along, and what a machine without a way out needs in its mailbox."""
    if spec.egress == "bundle":
        scheme = "s3" if spec.cloud == "aws" else "oss"
        text = "the machine installs its packages from bundle/wheels/ of its mailbox, and fails until they are there"
        command = (
            f"deployctl weights bundle {scheme}://<output mailbox> --region {spec.region}, then deployctl up again"
        )
        yield Finding("warning", "bundle", text, command)
    if spec.vpc_id is None or spec.endpoint == "public":
        return
    if spec.egress == "nat":
        text = f"egress nat in {spec.vpc_id} uses the way out that its subnets have; none is made there"
        yield Finding("warning", "network", text, "deployctl up --egress bundle")


def hourly_price(spec: DeploymentSpec, plan: Plan, price: LivePrice | Unknown) -> tuple[float | None, str]:
    """(US dollars per hour of the whole deployment, where the number comes from). None = unknown.

    A live price replaces the catalog's for the instance; one in an unnamed currency cannot be added to the others.
    """
    if isinstance(price, LivePrice) and price.currency == "USD":
        rest = plan.cost.items[1:] if plan.cost else ()
        total = price.per_hour + sum(item.usd_per_hour for item in rest if item.usd_per_hour is not None)
        return total, f"live: {price.source}"
    if plan.cost is None or plan.cost.usd_per_hour is None:
        return None, "unknown"
    return plan.cost.usd_per_hour, f"catalog: {plan.cost.items[0].source}"


def check_price(spec: DeploymentSpec, plan: Plan, price: LivePrice | Unknown) -> Iterator[Finding]:
    """Price per hour and until the TTL, always with its source."""
    total, source = hourly_price(spec, plan, price)
    if isinstance(price, LivePrice) and price.currency is None:
        text = f"the instance costs {price.per_hour:g} per hour in the account's currency (live: {price.source})"
        yield Finding("ok", "price", text)
    if total is None:
        why = price.why if isinstance(price, Unknown) else "the catalog has none in dollars"
        yield Finding("warning", "price", f"unknown ({why})")
        return
    text = f"${total:.2f}/h in all ({source})"
    if spec.ttl_seconds:
        text += f", ${total * spec.ttl_seconds / 3600:.2f} until the TTL of {spec.ttl}"
    if isinstance(price, Unknown):
        yield Finding("warning", "price", f"{text}; no live price ({price.why})")
    else:
        yield Finding("ok", "price", text)
