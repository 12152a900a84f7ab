"""The machine on AWS and what hangs on it: interface, address, disks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from provision.naming import WEIGHTS_TAG, resource_name
from provision.spec import DeploymentSpec
from provision.user_data import render_user_data
from runtime.bucket import ENDPOINT_VARIABLE
from runtime.vm import Vm
from stacks.aws_network import Network
from stacks.once import SshKey
from stacks.vm import GpuVmArgs

WEIGHTS_DEVICE = "/dev/sdf"  # the machine sees an NVMe disk; AWS wants a name all the same
HOP_LIMIT = 1  # metadata answers do not leave the machine, not into a container either


def make_interface(
    args: GpuVmArgs, network: Network, group: pulumi.Input[str], parent: pulumi.Resource
) -> aws.ec2.NetworkInterface:
    """Before the machine, so that its addresses are known."""
    pinned = ["subnet_id"] if args.is_place_free else []
    return aws.ec2.NetworkInterface(
        f"{args.spec.name}-machine",
        subnet_id=network.subnet_id,
        security_groups=[group],
        description=f"deployctl {args.spec.name}",
        opts=pulumi.ResourceOptions(parent=parent, ignore_changes=pinned),
    )


def make_address(
    spec: DeploymentSpec, network: Network, interface: aws.ec2.NetworkInterface, parent: pulumi.Resource
) -> pulumi.Output[str]:
    """A public address that outlives a stop and a new machine. An own VPC must have its gateway first."""
    after = pulumi.ResourceOptions(parent=parent, depends_on=list(network.ways))
    address = aws.ec2.Eip(f"{spec.name}-machine", domain="vpc", opts=after)
    aws.ec2.EipAssociation(
        f"{spec.name}-machine",
        allocation_id=address.id,
        network_interface_id=interface.id,
        # An address belongs to one interface: it leaves the old one before it goes to the new one.
        opts=pulumi.ResourceOptions(parent=parent, delete_before_replace=True),
    )
    return address.public_ip


@dataclass(frozen=True, slots=True)
class WeightsDisk:
    """`made`: the resources behind `id`, which must outlive the machine that they are attached to."""

    id: pulumi.Input[str]
    made: tuple[pulumi.Resource, ...] = ()


def make_weights_disk(args: GpuVmArgs, parent: pulumi.Resource) -> WeightsDisk | None:
    """The disk for the weights: one that was kept, a new one, or None where the spec wants none."""
    spec = args.spec
    if spec.weights_disk_gib is None:
        return None
    if args.settings.weights_disk is not None:
        return WeightsDisk(args.settings.weights_disk)
    pinned = ["availability_zone"] if args.is_place_free else []
    disk = aws.ebs.Volume(
        f"{spec.name}-weights",
        availability_zone=args.place.zone,
        size=spec.weights_disk_gib,
        type="gp3",
        encrypted=True,
        tags={WEIGHTS_TAG: spec.name},
        opts=pulumi.ResourceOptions(parent=parent, ignore_changes=pinned),
    )
    return WeightsDisk(disk.id, (disk,))


def make_instance(
    args: GpuVmArgs,
    interface: aws.ec2.NetworkInterface,
    ssh_key: SshKey,
    bucket: pulumi.Output[str],
    profile: pulumi.Output[str],
    disk: WeightsDisk | None,
    before: Sequence[pulumi.Resource],
    parent: pulumi.Resource,
) -> aws.ec2.Instance:
    """Image, user-data and SSH key are those of the first boot: a machine that exists is not replaced because a newer
    image came out, and changed user-data would not run again. So is the size of its disk, unless the user has set one:
    the plan of a smaller model must not try to shrink it."""
    spec, image = args.spec, args.preflight.image
    pinned = ["ami", "user_data", "key_name", *([] if spec.disk_gib else ["root_block_device"])]
    key = aws.ec2.KeyPair(
        f"{spec.name}-machine",
        key_name=resource_name(spec.name, "key"),
        public_key=ssh_key.public,
        opts=pulumi.ResourceOptions(parent=parent, ignore_changes=["public_key"]),
    )
    instance = aws.ec2.Instance(
        f"{spec.name}-machine",
        ami=image.id if image else None,
        instance_type=args.place.instance_type,
        key_name=key.key_name,
        iam_instance_profile=profile,
        primary_network_interface=aws.ec2.InstancePrimaryNetworkInterfaceArgs(network_interface_id=interface.id),
        root_block_device=aws.ec2.InstanceRootBlockDeviceArgs(
            volume_type="gp3", volume_size=args.plan.disk_gib, encrypted=True, delete_on_termination=True
        ),
        metadata_options=aws.ec2.InstanceMetadataOptionsArgs(
            http_endpoint="enabled", http_tokens="required", http_put_response_hop_limit=HOP_LIMIT
        ),
        user_data=bucket.apply(lambda found: render_user_data(_vm(spec, found))),
        instance_initiated_shutdown_behavior=_shutdown_behavior(spec),
        instance_market_options=_market(spec),
        capacity_reservation_specification=_reservation(spec),
        # An interface can be in one machine only: the old one goes before the new one comes.
        opts=pulumi.ResourceOptions(
            parent=parent,
            depends_on=[*before, *(disk.made if disk else ())],
            ignore_changes=pinned,
            delete_before_replace=True,
        ),
    )
    if disk is not None:
        _attach(spec, instance, disk, parent)
    return instance


def _attach(spec: DeploymentSpec, instance: aws.ec2.Instance, disk: WeightsDisk, parent: pulumi.Resource) -> None:
    aws.ec2.VolumeAttachment(
        f"{spec.name}-weights",
        device_name=WEIGHTS_DEVICE,
        instance_id=instance.id,
        volume_id=disk.id,
        # Taking a mounted disk from a running machine never ends; the machine's own end frees it.
        skip_destroy=True,
        opts=pulumi.ResourceOptions(parent=parent),
    )


def _vm(spec: DeploymentSpec, bucket: str) -> Vm:
    """`endpoint` honours the variable by which AWS's own tools are sent to another S3."""
    region = spec.region or ""
    other = os.environ.get(ENDPOINT_VARIABLE["aws"])
    endpoint = f"{other.rstrip('/')}/{bucket}" if other else f"https://{bucket}.s3.{region}.amazonaws.com"
    return Vm(name=spec.name, provider="aws", region=region, bucket=bucket, endpoint=endpoint)


def _shutdown_behavior(spec: DeploymentSpec) -> str | None:
    """A machine that switches itself off as a backstop of its TTL must stop billing. Spot refuses the setting: there,
    a machine that is off is gone anyway."""
    if spec.spot:
        return None
    return "terminate" if spec.ttl_seconds else "stop"


def _market(spec: DeploymentSpec) -> aws.ec2.InstanceInstanceMarketOptionsArgs | None:
    if not spec.spot:
        return None
    once = aws.ec2.InstanceInstanceMarketOptionsSpotOptionsArgs(
        spot_instance_type="one-time", instance_interruption_behavior="terminate"
    )
    return aws.ec2.InstanceInstanceMarketOptionsArgs(market_type="spot", spot_options=once)


def _reservation(spec: DeploymentSpec) -> aws.ec2.InstanceCapacityReservationSpecificationArgs | None:
    if spec.capacity_reservation is None:
        return None
    target = aws.ec2.InstanceCapacityReservationSpecificationCapacityReservationTargetArgs(
        capacity_reservation_id=spec.capacity_reservation
    )
    return aws.ec2.InstanceCapacityReservationSpecificationArgs(capacity_reservation_target=target)
