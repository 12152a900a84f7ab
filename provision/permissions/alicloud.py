"""The RAM policy for one spec: what Pulumi's provider, preflight and sweep call, limited where RAM can limit it.

Limited by region (ECS, VPC), by the deployment's tag (what ends a machine or a disk), by name (roles, policies, the
mailbox). The provider tags most things a moment after it has made them, so making cannot be limited by tag. From the
documents of the APIs and the provider's source; not yet run on a real cloud.
"""

from __future__ import annotations

from collections.abc import Iterator

from provision.naming import TAG, bucket_prefix, resource_name
from provision.permissions.model import Policy, Statement, pack
from provision.spec import DeploymentSpec, in_mainland_china

VERSION = "1"


def alicloud_policies(spec: DeploymentSpec) -> tuple[Policy, ...]:
    return pack(resource_name(spec.name, "deploy"), VERSION, _statements(spec), with_sid=False)


def _statements(spec: DeploymentSpec) -> Iterator[Statement]:
    yield _reads()
    yield from _machine(spec)
    yield from _network(spec)
    yield from _identities(spec)
    if spec.mailbox != "cloud_assistant":
        yield from _mailbox(spec)
    if spec.mailbox == "cloud_assistant" or (spec.mailbox is None and in_mainland_china(spec.cloud, spec.region)):
        yield from _cloud_assistant(spec)
    yield from _model(spec)


def _reads() -> Statement:
    """What preflight, provider and sweep ask; the sweep needs every one, whatever the spec creates."""
    ecs = (
        "AvailableResource", "Disks", "Images", "InstanceAttribute", "InstanceMaintenanceAttributes",
        "InstanceRamRole", "InstanceTypeFamilies", "InstanceTypes", "Instances", "KeyPairs", "NetworkInterfaces",
        "Price", "SecurityGroupAttribute", "SecurityGroups", "Snapshots", "Tags", "UserData", "Zones",
    )  # fmt: skip
    vpc = (
        "EipAddresses", "NatGateways", "RouteTableList", "SnatTableEntries", "VSwitchAttributes", "VSwitches",
        "VpcAttribute", "Vpcs", "Zones",
    )  # fmt: skip
    others = (
        "ecs:ListTagResources",
        "oss:ListBuckets",
        "quotas:ListProductQuotas",
        "ram:ListPolicies",
        "ram:ListRoles",
        "sts:GetCallerIdentity",
        "vpc:GetNatGatewayAttribute",
        "vpc:ListTagResources",
    )
    found = (*(f"ecs:Describe{name}" for name in ecs), *(f"vpc:Describe{name}" for name in vpc), *others)
    return Statement("FindWhatExistsAndProveThatNothingIsLeft", found, ("*",))


def _machine(spec: DeploymentSpec) -> Iterator[Statement]:
    made = [
        "AttachInstanceRamRole", "DeleteKeyPairs", "DetachInstanceRamRole", "ImportKeyPair",
        "ModifyDiskAttribute", "ModifyInstanceAttribute", "ModifyInstanceAutoReleaseTime",
        "ModifyInstanceMetadataOptions", "ModifyInstanceSpec", "ModifyInstanceVpcAttribute", "ResizeDisk",
        "RunInstances", "TagResources", "UntagResources",
    ]  # fmt: skip
    if spec.security_group_id is None:
        made += [
            "AuthorizeSecurityGroup", "CreateSecurityGroup", "DeleteSecurityGroup", "ModifySecurityGroupAttribute",
            "ModifySecurityGroupPolicy", "ModifySecurityGroupRule", "RevokeSecurityGroup",
        ]  # fmt: skip
    if spec.weights_disk_gib is not None:
        made += ["AttachDisk", "CreateDisk", "DetachDisk"]
    region = f"acs:ecs:{spec.region}:*:*"
    yield Statement("MachineInThisRegion", tuple(f"ecs:{action}" for action in made), (region,))
    ends = ("DeleteDisk", "DeleteInstance", "DeleteInstances", "DeleteSnapshot", "StartInstance", "StopInstance")
    ours = {"StringEquals": {f"acs:ResourceTag/{TAG}": spec.name}}
    yield Statement("EndOnlyThisDeployment", tuple(f"ecs:{action}" for action in ends), (region,), ours)


def _network(spec: DeploymentSpec) -> Iterator[Statement]:
    made: list[str] = []
    if spec.vpc_id is None:
        made += [
            "CreateVSwitch", "CreateVpc", "DeleteVSwitch", "DeleteVpc", "ModifyVSwitchAttribute",
            "ModifyVpcAttribute",
        ]  # fmt: skip
    nat = spec.egress == "nat" and spec.vpc_id is None
    if nat:
        made += [
            "CreateNatGateway", "CreateSnatEntry", "DeleteNatGateway", "DeleteSnatEntry", "ModifyNatGatewayAttribute",
            "ModifySnatEntry",
        ]  # fmt: skip
    if spec.endpoint == "public" or nat:
        made += [
            "AllocateEipAddress", "AssociateEipAddress", "ModifyEipAddressAttribute", "ReleaseEipAddress",
            "UnassociateEipAddress",
        ]  # fmt: skip
    if made:
        actions = tuple(f"vpc:{action}" for action in (*made, "TagResources", "UnTagResources"))
        yield Statement("NetworkInThisRegion", actions, (f"acs:vpc:{spec.region}:*:*",))
    if nat:
        service = {"StringEquals": {"ram:ServiceName": "nat.aliyuncs.com"}}
        yield Statement("FirstNatGatewayOfTheAccount", ("ram:CreateServiceLinkedRole",), ("*",), service)


def _identities(spec: DeploymentSpec) -> Iterator[Statement]:
    role = f"acs:ram:*:*:role/{resource_name(spec.name, 'role')}"
    policy = f"acs:ram:*:*:policy/{resource_name(spec.name, 'policy')}"
    actions = (
        "AttachPolicyToRole", "CreatePolicy", "CreatePolicyVersion", "CreateRole", "DeletePolicy",
        "DeletePolicyVersion", "DeleteRole", "DetachPolicyFromRole", "GetPolicy", "GetPolicyVersion", "GetRole",
        "ListEntitiesForPolicy", "ListPoliciesForRole", "ListPolicyVersions", "ListTagResources", "TagResources",
        "UntagResources", "UpdatePolicyDescription", "UpdateRole",
    )  # fmt: skip
    yield Statement("RoleOfTheMachine", tuple(f"ram:{action}" for action in actions), (role, policy))
    service = {"StringEquals": {"acs:Service": "ecs.aliyuncs.com"}}
    yield Statement("GiveTheRoleToTheMachine", ("ram:PassRole",), (role,), service)


def _mailbox(spec: DeploymentSpec) -> Iterator[Statement]:
    bucket = f"acs:oss:*:*:{bucket_prefix(spec.name)}*"
    actions = (
        "DeleteBucket", "DeleteBucketTagging", "GetBucketAcl", "GetBucketCors", "GetBucketEncryption",
        "GetBucketInfo", "GetBucketLifecycle", "GetBucketLocation", "GetBucketLogging", "GetBucketPolicy",
        "GetBucketPublicAccessBlock", "GetBucketReferer", "GetBucketTagging", "GetBucketTransferAcceleration",
        "GetBucketVersioning", "GetBucketWebsite", "ListMultipartUploads", "ListObjectVersions", "ListObjects",
        "PutBucket", "PutBucketAcl", "PutBucketEncryption", "PutBucketPublicAccessBlock", "PutBucketTagging",
        "DeleteBucketPublicAccessBlock",
    )  # fmt: skip
    objects = (
        "AbortMultipartUpload", "DeleteObject", "DeleteObjectVersion", "GetObject", "GetObjectAcl", "ListParts",
        "PutObject", "PutObjectAcl",
    )  # fmt: skip
    yield Statement("TheMailboxBucket", tuple(f"oss:{action}" for action in actions), (bucket,))
    yield Statement("ReleasesAndStatusInTheMailbox", tuple(f"oss:{action}" for action in objects), (f"{bucket}/*",))


def _cloud_assistant(spec: DeploymentSpec) -> Iterator[Statement]:
    """The mailbox where OSS may not be used from outside. Whoever may run commands on a machine is root there."""
    ours = {"StringEquals": {f"acs:ResourceTag/{TAG}": spec.name}}
    instances = (f"acs:ecs:{spec.region}:*:instance/*",)
    yield Statement("ReleasesAndStatusOnTheMachine", ("ecs:RunCommand", "ecs:SendFile"), instances, ours)
    reads = ("DescribeCloudAssistantStatus", "DescribeInvocationResults", "DescribeSendFileResults")
    yield Statement(
        "WhatTheMachineAnswered", tuple(f"ecs:{action}" for action in reads), (f"acs:ecs:{spec.region}:*:*",)
    )


def _model(spec: DeploymentSpec) -> Iterator[Statement]:
    if spec.model_ref.kind == "oss":
        name, _, prefix = spec.model_ref.location.partition("/")
        pattern = f"{prefix.rstrip('/')}/*" if prefix else "*"
        yield Statement("ReadTheModel", ("oss:GetObject",), (f"acs:oss:*:*:{name}/{pattern}",))
        yield Statement("ListTheModel", ("oss:ListObjects",), (f"acs:oss:*:*:{name}",))
