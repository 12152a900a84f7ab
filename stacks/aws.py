"""One GPU VM on AWS. Held against the SDK's types and moto; not yet run on a real cloud."""

from __future__ import annotations

import pulumi
import pulumi_aws as aws

from provision.naming import tags
from provision.spec import DeploymentSpec
from provision.stack_settings import keys_text
from stacks.aws_machine import make_address, make_instance, make_interface, make_weights_disk
from stacks.aws_mailbox import fill_bucket, make_bucket
from stacks.aws_network import make_network, make_security_group
from stacks.aws_power import keep_power
from stacks.aws_roles import make_instance_role
from stacks.aws_timer import make_timer
from stacks.content import make_content
from stacks.once import allowed_cidrs, decide_expiry, make_api_key, make_ssh_key, note_birth
from stacks.vm import GpuVm, GpuVmArgs, GpuVmOutputs, base_url

# Every type that the program can create in the account; what can be left behind is one of these.
RESOURCE_TYPES = (
    "aws:ebs/volume:Volume",
    "aws:ec2/eip:Eip",
    "aws:ec2/eipAssociation:EipAssociation",
    "aws:ec2/instance:Instance",
    "aws:ec2/internetGateway:InternetGateway",
    "aws:ec2/keyPair:KeyPair",
    "aws:ec2/natGateway:NatGateway",
    "aws:ec2/networkInterface:NetworkInterface",
    "aws:ec2/route:Route",
    "aws:ec2/routeTable:RouteTable",
    "aws:ec2/routeTableAssociation:RouteTableAssociation",
    "aws:ec2/securityGroup:SecurityGroup",
    "aws:ec2/subnet:Subnet",
    "aws:ec2/volumeAttachment:VolumeAttachment",
    "aws:ec2/vpc:Vpc",
    "aws:ec2/vpcEndpoint:VpcEndpoint",
    "aws:ec2transitgateway/instanceConnectEndpoint:InstanceConnectEndpoint",
    "aws:ec2transitgateway/instanceState:InstanceState",
    "aws:iam/instanceProfile:InstanceProfile",
    "aws:iam/role:Role",
    "aws:iam/rolePolicy:RolePolicy",
    "aws:iam/rolePolicyAttachment:RolePolicyAttachment",
    "aws:s3/bucket:Bucket",
    "aws:s3/bucketObjectv2:BucketObjectv2",
    "aws:s3/bucketPolicy:BucketPolicy",
    "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock",
    "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration",
    "aws:scheduler/schedule:Schedule",
    "aws:scheduler/scheduleGroup:ScheduleGroup",
    "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule",
    "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule",
)


def make_provider(spec: DeploymentSpec, options: pulumi.ResourceOptions) -> aws.Provider:
    """The spec's region; its default tags reach everything that can be tagged, disks of the machine too."""
    named = {"Name": f"deployctl-{spec.name}", **tags(spec.name, spec.tags)}
    default = aws.ProviderDefaultTagsArgs(tags=named)
    return aws.Provider(f"{spec.name}-aws", region=spec.region, default_tags=default, opts=options)


class AwsGpuVm(GpuVm):
    """One EC2 instance with its network, role, mailbox and timer.

    Addresses come first, because the machine's certificate names them; then the mailbox with the release, then the
    machine, so that its first look finds what to run.
    """

    def __init__(self, name: str, args: GpuVmArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("deployctl:aws:GpuVm", name, {}, opts)
        spec = args.spec
        api_key, ssh_key = make_api_key(spec, args.settings, self), make_ssh_key(spec, self)
        expires_at = decide_expiry(spec, args.settings, self)
        cidrs = allowed_cidrs(spec, self)

        network = make_network(args, self)
        group = make_security_group(spec, network, cidrs, self)
        interface = make_interface(args, network, group, self)
        public_ip = make_address(spec, network, interface, self) if spec.endpoint == "public" else None
        addresses = [public_ip, interface.private_ip] if public_ip else [interface.private_ip]

        bucket = make_bucket(name, self)
        content = make_content(args, addresses, api_key, expires_at)
        current = fill_bucket(name, bucket, content, self)
        role = make_instance_role(spec, bucket.bucket, self)
        disk = make_weights_disk(args, self)
        before = [current, *role.rights, *network.ways]
        instance = make_instance(args, interface, ssh_key, bucket.bucket, role.profile, disk, before, self)
        make_timer(args, instance, expires_at, self)
        keep_power(args, instance, self)
        self.outputs = GpuVmOutputs(
            endpoint=addresses[0].apply(lambda address: base_url(spec, address)),
            api_key=api_key,
            instance_id=instance.id,
            public_ip=pulumi.Output.from_input(public_ip),
            private_ip=interface.private_ip,
            region=pulumi.Output.from_input(spec.region or ""),
            zone=instance.availability_zone,
            instance_type=instance.instance_type,
            image=instance.ami,
            ssh_user=pulumi.Output.from_input(args.preflight.choice.user),
            ssh_private_key=ssh_key.private,
            mailbox=bucket.bucket,
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
