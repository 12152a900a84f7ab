"""One GPU VM on Alibaba Cloud. Held against the SDK's types; not yet run on a real cloud."""

from __future__ import annotations

import pulumi
import pulumi_alicloud as alicloud

from provision.mailboxes import spool_address
from provision.spec import DeploymentSpec
from provision.stack_settings import keys_text
from stacks.alicloud_machine import attach_address, attach_role, attach_weights_disk, make_instance
from stacks.alicloud_mailbox import fill_bucket, make_bucket, write_item
from stacks.alicloud_network import make_address, make_network, make_security_group
from stacks.alicloud_role import make_machine_role
from stacks.alicloud_spool import fill_spool
from stacks.content import make_content, wheel_item
from stacks.once import allowed_cidrs, decide_expiry, make_api_key, make_ssh_key, note_birth
from stacks.vm import GpuVm, GpuVmArgs, GpuVmOutputs, base_url

# Every type that the program can create in the account; what can be left behind is one of these.
RESOURCE_TYPES = (
    "alicloud:ecs/ecsDisk:EcsDisk",
    "alicloud:ecs/ecsDiskAttachment:EcsDiskAttachment",
    "alicloud:ecs/ecsKeyPair:EcsKeyPair",
    "alicloud:ecs/eipAddress:EipAddress",
    "alicloud:ecs/eipAssociation:EipAssociation",
    "alicloud:ecs/instance:Instance",
    "alicloud:ecs/ramRoleAttachment:RamRoleAttachment",
    "alicloud:ecs/securityGroup:SecurityGroup",
    "alicloud:ecs/securityGroupRule:SecurityGroupRule",
    "alicloud:oss/bucket:Bucket",
    "alicloud:oss/bucketAcl:BucketAcl",
    "alicloud:oss/bucketObject:BucketObject",
    "alicloud:oss/bucketPublicAccessBlock:BucketPublicAccessBlock",
    "alicloud:ram/policy:Policy",
    "alicloud:ram/role:Role",
    "alicloud:ram/rolePolicyAttachment:RolePolicyAttachment",
    "alicloud:vpc/natGateway:NatGateway",
    "alicloud:vpc/network:Network",
    "alicloud:vpc/snatEntry:SnatEntry",
    "alicloud:vpc/switch:Switch",
)


def make_provider(spec: DeploymentSpec, options: pulumi.ResourceOptions) -> alicloud.Provider:
    """The spec's region of the account whose credentials are found."""
    return alicloud.Provider(f"{spec.name}-alicloud", region=spec.region, opts=options)


class AlicloudGpuVm(GpuVm):
    """One ECS instance with its network, role, mailbox and timer.

    The wheel comes first: an account that may not write to OSS from here is told so before anything is bought. Then
    addresses, because the machine's certificate names them; then the rest of the release, then the machine, so that its
    first look finds what to run. With `mailbox: cloud_assistant` there is no bucket: the release follows the machine.
    """

    def __init__(self, name: str, args: GpuVmArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("deployctl:alicloud:GpuVm", name, {}, opts)
        spec = args.spec
        api_key, ssh_key = make_api_key(spec, args.settings, self), make_ssh_key(spec, self)
        expires_at = decide_expiry(spec, args.settings, self)
        cidrs = allowed_cidrs(spec, self)

        bucket = None if spec.mailbox == "cloud_assistant" else make_bucket(spec, self)
        wheel = None if bucket is None else write_item(name, bucket, wheel_item(args), self)
        first = [] if wheel is None else [wheel]
        network = make_network(args, first, self)
        group = make_security_group(spec, network, cidrs, self)
        address = make_address(spec, "machine", first, self) if spec.endpoint == "public" else None
        # The private address is that of a zone; where the machine may stay in another one, it names its own itself.
        private_ip = None if args.is_place_free else network.private_ip
        addresses: list[pulumi.Input[str] | None] = [address.ip_address if address else None, private_ip]
        known = [found for found in addresses if found is not None]

        content = make_content(args, known, api_key, expires_at)
        stored = pulumi.Output.from_input(None if bucket is None else bucket.bucket)
        role = make_machine_role(spec, stored, self)
        before = [*role.rights, *network.ways]
        if bucket is not None and wheel is not None:
            before.append(fill_bucket(name, bucket, content, wheel, self))
        instance = make_instance(args, network, group, ssh_key, stored, expires_at, before, self)
        attached = [attach_role(spec, instance, role.name, self)]
        if address is not None:
            attached.append(attach_address(spec, instance, address, self))
        if bucket is None:
            attached.append(fill_spool(spec, instance, content, self))
        attach_weights_disk(args, instance, self)
        reached = address.ip_address if address else instance.private_ip
        # The endpoint is one only when role, address and release are there: who waits for it, waits for them.
        endpoint = pulumi.Output.all(reached, *(item.urn for item in attached))
        self.outputs = GpuVmOutputs(
            endpoint=endpoint.apply(lambda found: base_url(spec, found[0])),
            api_key=api_key,
            instance_id=instance.id,
            public_ip=pulumi.Output.from_input(address.ip_address if address else None),
            private_ip=instance.private_ip,
            region=pulumi.Output.from_input(spec.region or ""),
            zone=instance.availability_zone,
            instance_type=instance.instance_type,
            image=instance.image_id,
            ssh_user=pulumi.Output.from_input(args.preflight.choice.user),
            ssh_private_key=ssh_key.private,
            mailbox=instance.id.apply(spool_address) if bucket is None else bucket.bucket,
            release=pulumi.Output.from_input(content.release),
            allowed_cidrs=pulumi.Output.all(*cidrs),
            made_at=note_birth(spec, instance.id, self),
            expires_at=expires_at,
            stopped=pulumi.Output.from_input(args.settings.stopped),
            woken_at=pulumi.Output.from_input(args.settings.woken_at or 0),
            keys=pulumi.Output.from_input(keys_text(args.settings.keys)),
            key_round=pulumi.Output.from_input(args.settings.key_round),
        )
        self.register_outputs(self.outputs.by_name())
