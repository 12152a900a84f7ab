"""The IAM policy for one spec: what Pulumi's provider, preflight and sweep call, on this deployment's things only.

Reads cannot be limited to resources (EC2's Describe… take none). What is made must carry the deployment's tag from its
first moment; what is changed or deleted must carry it; roles, buckets and schedules are limited by name. Calls of the
program are held against a run on moto; what the provider reads beside them is from its source, and not yet run on a
real cloud.
"""

from __future__ import annotations

from collections.abc import Iterator

from provision.naming import TAG, bucket_prefix, resource_name
from provision.permissions.model import Condition, Policy, Statement, pack
from provision.spec import DeploymentSpec

VERSION = "2012-10-17"
SSM_CORE = "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"

# EC2 resource types in ARNs, by the action that makes one.
MAKES = {
    "CreateVpc": ("vpc",),
    "CreateSubnet": ("subnet",),
    "CreateInternetGateway": ("internet-gateway",),
    "CreateRouteTable": ("route-table",),
    "CreateSecurityGroup": ("security-group",),
    "AuthorizeSecurityGroupIngress": ("security-group-rule",),
    "AuthorizeSecurityGroupEgress": ("security-group-rule",),
    "CreateNetworkInterface": ("network-interface",),
    "CreateVpcEndpoint": ("vpc-endpoint",),
    "CreateVolume": ("volume",),
    "CreateNatGateway": ("natgateway",),
    "CreateInstanceConnectEndpoint": ("instance-connect-endpoint",),
    "AllocateAddress": ("elastic-ip",),
    "ImportKeyPair": ("key-pair",),
    "RunInstances": ("instance",),
}


def aws_policies(spec: DeploymentSpec) -> tuple[Policy, ...]:
    return pack(resource_name(spec.name, "deploy"), VERSION, _statements(spec), with_sid=True)


def _statements(spec: DeploymentSpec) -> Iterator[Statement]:
    yield _reads(spec)
    yield from _preflight(spec)
    yield from _ec2(spec)
    yield from _identities(spec)
    yield from _mailbox(spec)
    yield from _timer(spec)


def _reads(spec: DeploymentSpec) -> Statement:
    """Also what the sweep asks: it needs every one of them, whatever the spec creates."""
    ec2 = (
        "Addresses", "AddressesAttribute", "AvailabilityZones", "Images", "InstanceAttribute",
        "InstanceConnectEndpoints", "InstanceCreditSpecifications", "InstanceTypeOfferings", "InstanceTypes",
        "Instances", "InternetGateways", "KeyPairs", "NatGateways", "NetworkAcls", "NetworkInterfaces", "PrefixLists",
        "RouteTables", "SecurityGroupRules", "SecurityGroups", "Snapshots", "SpotInstanceRequests", "SpotPriceHistory",
        "Subnets", "Tags", "Volumes", "VolumesModifications", "VpcAttribute", "VpcEndpoints", "Vpcs",
    )  # fmt: skip
    others = (
        "iam:ListInstanceProfiles",
        "iam:ListPolicies",
        "iam:ListRoles",
        "s3:ListAllMyBuckets",
        "scheduler:ListScheduleGroups",
        "scheduler:ListSchedules",
        "sts:GetCallerIdentity",
    )
    return Statement(
        "FindWhatExistsAndProveThatNothingIsLeft", (*(f"ec2:Describe{name}" for name in ec2), *others), ("*",)
    )


def _preflight(spec: DeploymentSpec) -> Iterator[Statement]:
    asked = ("pricing:GetProducts", "servicequotas:GetServiceQuota", "servicequotas:GetAWSDefaultServiceQuota")
    yield Statement("PriceAndQuotaBeforeAnythingIsBought", asked, ("*",))
    images = f"arn:aws:ssm:{spec.region}::parameter/aws/service/deeplearning/*"
    yield Statement("WhichImageIsNewest", ("ssm:GetParameter", "ssm:GetParameters"), (images,))
    if spec.model_ref.kind == "s3":
        bucket, _, prefix = spec.model_ref.location.partition("/")
        pattern = f"{prefix.rstrip('/')}/*" if prefix else "*"
        yield Statement("ReadTheModel", ("s3:GetObject",), (f"arn:aws:s3:::{bucket}/{pattern}",))
        yield Statement("ListTheModel", ("s3:ListBucket",), (f"arn:aws:s3:::{bucket}",))


def _ec2(spec: DeploymentSpec) -> Iterator[Statement]:
    region = f"arn:aws:ec2:{spec.region}:*"
    made = _made(spec)
    ours: Condition = {"StringEquals": {f"aws:ResourceTag/{TAG}": spec.name}}
    asked: Condition = {"StringEquals": {f"aws:RequestTag/{TAG}": spec.name}}
    actions = tuple(f"ec2:{action}" for action in made)
    kinds = sorted({kind for action in made for kind in MAKES[action]})
    yield Statement("MakeOnlyWhatCarriesTheTag", actions, tuple(f"{region}:{kind}/*" for kind in kinds), asked)
    yield Statement("MakeItInsideThisDeployment", actions, (f"{region}:*/*",), ours)
    if spec.vpc_id:
        yield Statement("MakeItInYourNetwork", actions, tuple(f"{region}:{part}" for part in _own_network(spec)))
    # The image is AWS's or the user's; disks of an instance get their tags a moment after they are made.
    yield Statement(
        "StartFromAnImage", ("ec2:RunInstances",), (f"{region}:volume/*", f"arn:aws:ec2:{spec.region}::image/*")
    )
    if spec.capacity_reservation:
        reserved = f"{region}:capacity-reservation/{spec.capacity_reservation}"
        yield Statement("StartInTheReservation", ("ec2:RunInstances",), (reserved,))
    at_birth: Condition = {"StringEquals": {**asked["StringEquals"], "ec2:CreateAction": made}}
    yield Statement("TagWhatIsBeingMade", ("ec2:CreateTags",), (f"{region}:*/*",), at_birth)
    yield Statement("TagTheDisksOfTheMachine", ("ec2:CreateTags",), (f"{region}:volume/*",), asked)
    yield Statement("ChangeAndDeleteOnlyThisDeployment", _changes(spec), (f"{region}:*/*",), ours)
    if spec.vpc_id:
        linked = ("ec2:AttachNetworkInterface", "ec2:ModifyNetworkInterfaceAttribute")
        yield Statement("LinkToYourNetwork", linked, tuple(f"{region}:{part}" for part in _own_network(spec)))
    if spec.spot:
        yield _first("SpotMachine", "spot.amazonaws.com/AWSServiceRoleForEC2Spot")
    if "CreateInstanceConnectEndpoint" in made:
        yield _first("ConnectEndpoint", "ec2-instance-connect.amazonaws.com/AWSServiceRoleForEC2InstanceConnect")
    if spec.endpoint == "intranet":
        tunnel = (f"{region}:instance-connect-endpoint/*",)
        yield Statement("ShellThroughTheConnectEndpoint", ("ec2-instance-connect:OpenTunnel",), tunnel, ours)


def _first(thing: str, role: str) -> Statement:
    """AWS makes itself a role when the account uses a service for the first time."""
    arn = f"arn:aws:iam::*:role/aws-service-role/{role}"
    return Statement(f"First{thing}OfTheAccount", ("iam:CreateServiceLinkedRole",), (arn,))


def _made(spec: DeploymentSpec) -> tuple[str, ...]:
    """Actions of MAKES that this spec needs."""
    found = ["CreateNetworkInterface", "ImportKeyPair", "RunInstances"]
    if spec.security_group_id is None:
        found += ["CreateSecurityGroup", "AuthorizeSecurityGroupIngress", "AuthorizeSecurityGroupEgress"]
    if spec.vpc_id is None:
        found += ["CreateVpc", "CreateSubnet", "CreateRouteTable", "CreateVpcEndpoint"]
        if spec.endpoint == "public" or spec.egress == "nat":
            found.append("CreateInternetGateway")
        if spec.endpoint == "intranet":
            found.append("CreateInstanceConnectEndpoint")
        if spec.egress == "nat":
            found.append("CreateNatGateway")
    if spec.endpoint == "public" or (spec.egress == "nat" and spec.vpc_id is None):
        found.append("AllocateAddress")
    if spec.weights_disk_gib is not None:
        found.append("CreateVolume")
    return tuple(sorted(found))


def _changes(spec: DeploymentSpec) -> tuple[str, ...]:
    found = [
        "AttachNetworkInterface", "CreateTags", "DeleteKeyPair", "DeleteNetworkInterface", "DeleteSnapshot",
        "DeleteTags", "DeleteVolume", "DetachNetworkInterface", "ModifyInstanceAttribute",
        "ModifyInstanceMetadataOptions", "ModifyNetworkInterfaceAttribute", "ModifyVolume", "StartInstances",
        "StopInstances", "TerminateInstances",
    ]  # fmt: skip
    if spec.security_group_id is None:
        found += [
            "DeleteSecurityGroup", "ModifySecurityGroupRules", "RevokeSecurityGroupEgress",
            "RevokeSecurityGroupIngress",
        ]  # fmt: skip
    if spec.vpc_id is None:
        found += [
            "AssociateRouteTable", "AttachInternetGateway", "CreateRoute", "DeleteInstanceConnectEndpoint",
            "DeleteInternetGateway", "DeleteNatGateway", "DeleteRoute", "DeleteRouteTable", "DeleteSubnet",
            "DeleteVpc", "DeleteVpcEndpoints", "DetachInternetGateway", "DisassociateRouteTable",
            "ModifySubnetAttribute", "ModifyVpcAttribute", "ModifyVpcEndpoint", "ReplaceRoute",
        ]  # fmt: skip
    if "AllocateAddress" in _made(spec):
        found += ["AssociateAddress", "DisassociateAddress", "ReleaseAddress"]
    if spec.weights_disk_gib is not None:
        found += ["AttachVolume", "DetachVolume"]
    if spec.spot:
        found.append("CancelSpotInstanceRequests")
    return tuple(f"ec2:{action}" for action in found)


def _own_network(spec: DeploymentSpec) -> tuple[str, ...]:
    """ARN ends of the user's network, as far as the spec names it."""
    group = f"security-group/{spec.security_group_id}" if spec.security_group_id else None
    parts = (f"vpc/{spec.vpc_id}", f"subnet/{spec.subnet_id or '*'}", group)
    return tuple(part for part in parts if part)


def _identities(spec: DeploymentSpec) -> Iterator[Statement]:
    roles = [resource_name(spec.name, "role"), *([resource_name(spec.name, "scheduler")] if spec.ttl_seconds else [])]
    arns = tuple(f"arn:aws:iam::*:role/{role}" for role in roles)
    managed = (
        "CreateRole", "DeleteRole", "DeleteRolePolicy", "GetRole", "GetRolePolicy", "ListAttachedRolePolicies",
        "ListInstanceProfilesForRole", "ListRolePolicies", "PutRolePolicy", "TagRole", "UntagRole",
        "UpdateAssumeRolePolicy", "UpdateRole", "UpdateRoleDescription",
    )  # fmt: skip
    yield Statement("RolesOfMachineAndTimer", tuple(f"iam:{action}" for action in managed), arns)
    service = {"StringEquals": {"iam:PassedToService": ("ec2.amazonaws.com", "scheduler.amazonaws.com")}}
    yield Statement("GiveTheRolesToThem", ("iam:PassRole",), arns, service)
    if spec.endpoint == "intranet":
        only = {"ArnEquals": {"iam:PolicyARN": SSM_CORE}}
        yield Statement("ShellThroughSystemsManager", ("iam:AttachRolePolicy", "iam:DetachRolePolicy"), arns[:1], only)
    profile = (
        "AddRoleToInstanceProfile", "CreateInstanceProfile", "DeleteInstanceProfile", "GetInstanceProfile",
        "RemoveRoleFromInstanceProfile", "TagInstanceProfile", "UntagInstanceProfile",
    )  # fmt: skip
    yield Statement(
        "ProfileOfTheMachine",
        tuple(f"iam:{action}" for action in profile),
        (f"arn:aws:iam::*:instance-profile/{resource_name(spec.name, 'profile')}", *arns[:1]),
    )


def _mailbox(spec: DeploymentSpec) -> Iterator[Statement]:
    bucket = f"arn:aws:s3:::{bucket_prefix(spec.name)}*"
    actions = (
        "CreateBucket", "DeleteBucket", "DeleteBucketPolicy", "GetAccelerateConfiguration", "GetBucketAcl",
        "GetBucketCORS", "GetBucketLocation", "GetBucketLogging", "GetBucketObjectLockConfiguration",
        "GetBucketPolicy", "GetBucketPublicAccessBlock", "GetBucketRequestPayment", "GetBucketTagging",
        "GetBucketVersioning", "GetBucketWebsite", "GetEncryptionConfiguration", "GetLifecycleConfiguration",
        "GetReplicationConfiguration", "ListBucket", "ListBucketVersions", "ListTagsForResource", "PutBucketPolicy",
        "PutBucketPublicAccessBlock", "PutBucketTagging", "PutEncryptionConfiguration", "TagResource",
        "UntagResource",
    )  # fmt: skip
    yield Statement("TheMailboxBucket", tuple(f"s3:{action}" for action in actions), (bucket,))
    objects = (
        "AbortMultipartUpload", "DeleteObject", "DeleteObjectVersion", "GetObject", "GetObjectTagging",
        "ListMultipartUploadParts", "PutObject", "PutObjectTagging",
    )  # fmt: skip
    yield Statement("ReleasesAndStatusInTheMailbox", tuple(f"s3:{action}" for action in objects), (f"{bucket}/*",))


def _timer(spec: DeploymentSpec) -> Iterator[Statement]:
    if spec.ttl_seconds == 0:
        return
    name, base = resource_name(spec.name, "ttl"), f"arn:aws:scheduler:{spec.region}:*"
    actions = (
        "CreateSchedule", "CreateScheduleGroup", "DeleteSchedule", "DeleteScheduleGroup", "GetSchedule",
        "GetScheduleGroup", "ListTagsForResource", "TagResource", "UntagResource", "UpdateSchedule",
    )  # fmt: skip
    resources = (f"{base}:schedule-group/{name}", f"{base}:schedule/{name}/{name}")
    yield Statement("TimerThatDeletesTheMachine", tuple(f"scheduler:{action}" for action in actions), resources)
