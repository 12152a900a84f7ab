"""The machine on Alibaba Cloud and what hangs on it: disks, key, role, end of life. Not yet run on a real cloud.

The provider has no defaults for charge types and bandwidth since its version 4, so all are given.
"""

from __future__ import annotations

import base64
import datetime
import os
from collections.abc import Sequence

import pulumi
import pulumi_alicloud as alicloud

from provision import catalog
from provision.images import requires_token
from provision.naming import WEIGHTS_TAG, resource_name, tags
from provision.preflight import disk_category
from provision.spec import DeploymentSpec
from provision.stack_settings import StackSettings
from provision.user_data import render_user_data
from runtime.bucket import ENDPOINT_VARIABLE
from runtime.vm import SPOOL_DIR, Vm
from stacks.alicloud_mailbox import internal_endpoint
from stacks.alicloud_network import Network
from stacks.once import SshKey
from stacks.vm import GpuVmArgs

POST_PAID = "PostPaid"
ESSD_LEVEL = "PL1"
MINUTE = 60


def make_instance(
    args: GpuVmArgs,
    network: Network,
    group: pulumi.Input[str],
    ssh_key: SshKey,
    bucket: pulumi.Output[str | None],
    expires_at: pulumi.Output[int | None],
    before: Sequence[pulumi.Resource],
    parent: pulumi.Resource,
) -> alicloud.ecs.Instance:
    """Image, user-data and key are those of the first boot: a machine that exists is not replaced because a newer image
    came out, and changed user-data would not run again. So is the size of its disk, unless the user has set one: the
    plan of a smaller model must not try to shrink it."""
    spec, image = args.spec, args.preflight.image
    category = disk_category(catalog.INSTANCE_TYPES[args.place.instance_type])
    key = alicloud.ecs.EcsKeyPair(
        f"{spec.name}-machine",
        key_pair_name=resource_name(spec.name, "key"),
        public_key=ssh_key.public,
        tags=tags(spec.name, spec.tags),
        opts=pulumi.ResourceOptions(parent=parent, ignore_changes=["public_key"]),
    )
    pinned = ["image_id", "user_data", "key_name", "http_tokens", *([] if spec.disk_gib else ["system_disk_size"])]
    place = ["availability_zone", "vswitch_id", "private_ip"] if args.is_place_free else []
    return alicloud.ecs.Instance(
        f"{spec.name}-machine",
        instance_name=resource_name(spec.name, "machine"),
        image_id=image.id if image else None,
        instance_type=args.place.instance_type,
        # A vSwitch of another zone would be an update that the cloud refuses; another zone is a new machine.
        availability_zone=args.place.zone if spec.vpc_id is None else None,
        vswitch_id=network.switch_id,
        private_ip=network.private_ip,
        security_groups=[group],
        key_name=key.key_pair_name,
        instance_charge_type=POST_PAID,
        internet_charge_type="PayByTraffic",
        internet_max_bandwidth_out=0,  # its address, if any, is an EIP
        system_disk_category=category,
        system_disk_performance_level=_level(category),
        system_disk_size=args.plan.disk_gib,
        system_disk_encrypted=True,
        system_disk_name=resource_name(spec.name, "system"),
        http_endpoint="enabled",
        http_tokens="required" if image and requires_token("alicloud", image.name) else "optional",
        user_data=bucket.apply(lambda found: _user_data(spec, found)),
        spot_strategy="SpotAsPriceGo" if spec.spot else "NoSpot",
        spot_interruption_behavior="Terminate" if spec.spot else None,
        status=None if args.settings.woken_at is None and not args.settings.stopped else power_state(args.settings),
        # Billing of a stopped machine goes on unless the mode is named; a spot machine cannot be stopped.
        stopped_mode=None if spec.spot else "StopCharging",
        private_pool_options_match_criteria="Target" if spec.capacity_reservation else None,
        private_pool_options_id=spec.capacity_reservation,
        auto_release_time=expires_at.apply(release_time),
        deletion_protection=False,
        security_enhancement_strategy="Deactive",
        tags=tags(spec.name, spec.tags),
        volume_tags=tags(spec.name, spec.tags),
        # Its private address and its key's name belong to one machine: the old one goes before the new one comes.
        opts=pulumi.ResourceOptions(
            parent=parent,
            depends_on=list(before),
            ignore_changes=[*pinned, *place],
            delete_before_replace=True,
        ),
    )


def power_state(settings: StackSettings) -> str:
    return "Stopped" if settings.stopped else "Running"


def release_time(expires_at: int | None) -> str | None:
    """The cloud's timer, in whole minutes, rounded up; it must be half an hour ahead. None = never.

    The API drops the seconds: with any, each refresh would find a difference. It is not ignored after the creation,
    because a later `extend` changes it.
    """
    if expires_at is None:
        return None
    at = datetime.datetime.fromtimestamp(-(-expires_at // MINUTE) * MINUTE, datetime.UTC)
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def attach_role(
    spec: DeploymentSpec, instance: alicloud.ecs.Instance, role: pulumi.Output[str], parent: pulumi.Resource
) -> pulumi.Resource:
    """After the machine: its metadata answer 404 for the role until then, and stage 0 waits."""
    return alicloud.ecs.RamRoleAttachment(
        f"{spec.name}-machine",
        instance_id=instance.id,
        ram_role_name=role,
        opts=pulumi.ResourceOptions(parent=parent, delete_before_replace=True),
    )


def attach_address(
    spec: DeploymentSpec, instance: alicloud.ecs.Instance, address: alicloud.ecs.EipAddress, parent: pulumi.Resource
) -> pulumi.Resource:
    return alicloud.ecs.EipAssociation(
        f"{spec.name}-machine",
        allocation_id=address.id,
        instance_id=instance.id,
        instance_type="EcsInstance",
        opts=pulumi.ResourceOptions(parent=parent, delete_before_replace=True),
    )


def attach_weights_disk(args: GpuVmArgs, instance: alicloud.ecs.Instance, parent: pulumi.Resource) -> None:
    """The disk for the weights, where the spec wants one: one that was kept, or a new one in the machine's zone."""
    spec = args.spec
    if spec.weights_disk_gib is None:
        return
    disk = pulumi.Output.from_input(args.settings.weights_disk) if args.settings.weights_disk else _disk(args, parent)
    alicloud.ecs.EcsDiskAttachment(
        f"{spec.name}-weights",
        disk_id=disk,
        instance_id=instance.id,
        delete_with_instance=False,
        opts=pulumi.ResourceOptions(parent=parent, delete_before_replace=True),
    )


def _disk(args: GpuVmArgs, parent: pulumi.Resource) -> pulumi.Output[str]:
    spec = args.spec
    category = disk_category(catalog.INSTANCE_TYPES[args.place.instance_type])
    made = alicloud.ecs.EcsDisk(
        f"{spec.name}-weights",
        disk_name=resource_name(spec.name, "weights"),
        zone_id=args.place.zone,
        category=category,
        performance_level=_level(category),
        size=spec.weights_disk_gib,
        encrypted=True,
        payment_type="PayAsYouGo",
        delete_with_instance=False,
        delete_auto_snapshot=True,
        tags={**tags(spec.name, spec.tags), WEIGHTS_TAG: spec.name},
        opts=pulumi.ResourceOptions(parent=parent, ignore_changes=["zone_id"] if args.is_place_free else []),
    )
    return made.id


def _level(category: str) -> str | None:
    """Only disks of this kind have levels; the API refuses one for the others."""
    return ESSD_LEVEL if category == "cloud_essd" else None


def _user_data(spec: DeploymentSpec, bucket: str | None) -> str:
    """`bucket` None: the mailbox is the machine's spool."""
    region = spec.region or ""
    vm = Vm(
        name=spec.name,
        provider="alicloud",
        region=region,
        bucket=bucket or "",
        endpoint=_endpoint(bucket, region),
        spool=str(SPOOL_DIR) if bucket is None else None,
    )
    return base64.b64encode(render_user_data(vm).encode()).decode()


def _endpoint(bucket: str | None, region: str) -> str:
    """The region's internal one, of the bucket or of the store. Another store, named by the variable that OSS's own
    tools read, is honoured; one of Alibaba Cloud's is not: it is the user's way to OSS, not the machine's."""
    other = os.environ.get(ENDPOINT_VARIABLE["alicloud"], "")
    if not other or "aliyuncs.com" in other:
        return internal_endpoint(bucket, region)
    return "/".join([other.rstrip("/"), *([bucket] if bucket else [])])
