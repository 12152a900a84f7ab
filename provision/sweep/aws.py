"""What a deployment may have left on AWS: one question per kind of resource, by tag and by name.

`PROBES` stands in the order of deletion: what depends on something comes before it. boto3 finds the user's
credentials as Pulumi's provider does. Tried on moto; not yet run on a real cloud.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import boto3
from botocore.exceptions import ClientError, NoCredentialsError

from provision.catalog import INSTANCE_TYPES
from provision.costs import GP3_USD_PER_GIB_MONTH, HOURS_PER_MONTH, NAT_USD_PER_HOUR, PUBLIC_IPV4_USD_PER_HOUR
from provision.naming import TAG, WEIGHTS_TAG, bucket_prefix, resource_name
from provision.sweep.aws_account import ATTEMPTS, Account, Json, Probe, tags_of
from provision.sweep.aws_calls import NO_ANSWER, call, delete, empty_bucket
from provision.sweep.model import GLOBAL, Leftover, Step, Unknown, is_mailbox, is_ours

DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "Forbidden", "403")
NO_KEY = (
    "AuthFailure", "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidClientTokenId",
    "SignatureDoesNotMatch", "UnrecognizedClientException",
)  # fmt: skip
THROTTLED = ("Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException", "SlowDown")
PERMISSIONS = {"s3:ListBuckets": "s3:ListAllMyBuckets"}  # where IAM calls it otherwise than the API
# Ends of names (provision.naming.resource_name) by which things are found where their tags are missing.
PARTS = ("key", "role", "profile", "scheduler", "ttl", "machine", "connect")


def _schedules(account: Account) -> Iterator[Leftover]:
    prefix = resource_name(account.name, "")
    groups = {group["Name"] for group in _our_groups(account)}
    for item in account.ask("scheduler", "list_schedules", "Schedules", {"NamePrefix": prefix}):
        group = item.get("GroupName", "default")
        if group in groups or is_ours(account.name, item["Name"], {}, PARTS):
            arguments = (("GroupName", group), ("Name", item["Name"]))
            steps = [call("scheduler", "delete_schedule", arguments, account.region)]
            yield account.leftover("schedule", f"{group}/{item['Name']}", 0.0, steps)


def _schedule_groups(account: Account) -> Iterator[Leftover]:
    for group in _our_groups(account):
        steps = [call("scheduler", "delete_schedule_group", (("Name", group["Name"]),), account.region)]
        going = group.get("State") == "DELETING"
        yield account.leftover("schedule group", group["Name"], 0.0, steps, going=going)


def _our_groups(account: Account) -> Iterator[Json]:
    prefix = {"NamePrefix": resource_name(account.name, "")}
    for group in account.ask("scheduler", "list_schedule_groups", "ScheduleGroups", prefix):
        tags = account.ask("scheduler", "list_tags_for_resource", "Tags", {"ResourceArn": group["Arn"]})
        if is_ours(account.name, group["Name"], tags_of({"Tags": list(tags)}), PARTS):
            yield group


def _spot_requests(account: Account) -> Iterator[Leftover]:
    """Also those without tags, by the key pair that they would start with."""
    filters = {"state": ["open", "active"]}
    for item in account.ec2("describe_spot_instance_requests", "SpotInstanceRequests", filters):
        key = item.get("LaunchSpecification", {}).get("KeyName", "")
        if is_ours(account.name, key, tags_of(item), PARTS):
            id_ = item["SpotInstanceRequestId"]
            steps = [account.step("cancel_spot_instance_requests", ("SpotInstanceRequestIds", (id_,)))]
            yield account.leftover("spot request", id_, 0.0, steps)


def _instances(account: Account) -> Iterator[Leftover]:
    filters = ({f"tag:{TAG}": [account.name]}, {"vpc-id": account.vpc_ids})
    for reservation in (
        found for wanted in filters for found in account.ec2("describe_instances", "Reservations", wanted)
    ):
        for item in reservation["Instances"]:
            state = item["State"]["Name"]
            ours = tags_of(item).get(TAG) == account.name or item.get("VpcId") in account.vpc_ids
            if state == "terminated" or not ours:
                continue
            id_ = item["InstanceId"]
            steps = [account.step("terminate_instances", ("InstanceIds", (id_,)), then="instance-terminated")]
            yield account.leftover("instance", id_, instance_price(item), steps, going=state == "shutting-down")


def instance_price(item: Json) -> float | None:
    """The catalog's on-demand price; spot prices move, so they are unknown."""
    if item["State"]["Name"] not in ("pending", "running"):
        return 0.0
    known = INSTANCE_TYPES.get(item["InstanceType"])
    if known is None or known.price is None or item.get("InstanceLifecycle") == "spot":
        return None
    return known.price.usd_per_hour


def _nat_gateways(account: Account) -> Iterator[Leftover]:
    for item in account.in_vpc("describe_nat_gateways", "NatGateways"):
        if item["State"] in ("deleted", "failed"):
            continue
        id_, going = item["NatGatewayId"], item["State"] == "deleting"
        steps = [account.step("delete_nat_gateway", ("NatGatewayId", id_), then="nat-gateway-deleted")]
        yield account.leftover("NAT gateway", id_, 0.0 if going else NAT_USD_PER_HOUR, steps, going=going)


def _connect_endpoints(account: Account) -> Iterator[Leftover]:
    for item in account.in_vpc("describe_instance_connect_endpoints", "InstanceConnectEndpoints"):
        if item["State"] in ("delete-complete", "create-failed"):
            continue
        id_ = item["InstanceConnectEndpointId"]
        steps = [account.step("delete_instance_connect_endpoint", ("InstanceConnectEndpointId", id_))]
        going = item["State"] == "delete-in-progress"
        yield account.leftover("instance connect endpoint", id_, 0.0, steps, going=going)


def _vpc_endpoints(account: Account) -> Iterator[Leftover]:
    for item in account.in_vpc("describe_vpc_endpoints", "VpcEndpoints"):
        state = item["State"].lower()
        if state == "deleted":
            continue
        id_ = item["VpcEndpointId"]
        price = 0.0 if item["VpcEndpointType"] == "Gateway" else None
        steps = [account.step("delete_vpc_endpoints", ("VpcEndpointIds", (id_,)))]
        yield account.leftover("VPC endpoint", id_, price, steps, going=state == "deleting")


def _addresses(account: Account) -> Iterator[Leftover]:
    for item in account.tagged("describe_addresses", "Addresses"):
        steps = [account.step("release_address", ("AllocationId", item["AllocationId"]))]
        if item.get("AssociationId"):
            steps.insert(0, account.step("disassociate_address", ("AssociationId", item["AssociationId"])))
        yield account.leftover("elastic IP", item["AllocationId"], PUBLIC_IPV4_USD_PER_HOUR, steps)


def _interfaces(account: Account) -> Iterator[Leftover]:
    """Without those that a NAT gateway or an endpoint made for itself: they go with it."""
    for item in account.in_vpc("describe_network_interfaces", "NetworkInterfaces"):
        if not item.get("RequesterManaged"):
            id_ = item["NetworkInterfaceId"]
            steps = [account.step("delete_network_interface", ("NetworkInterfaceId", id_))]
            yield account.leftover("network interface", id_, 0.0, steps)


def _volumes(account: Account) -> Iterator[Leftover]:
    weights = account.ec2("describe_volumes", "Volumes", {f"tag:{WEIGHTS_TAG}": [account.name]})
    for item in (*account.tagged("describe_volumes", "Volumes"), *weights):
        price = item["Size"] * GP3_USD_PER_GIB_MONTH / HOURS_PER_MONTH if item.get("VolumeType") == "gp3" else None
        steps = [account.step("delete_volume", ("VolumeId", item["VolumeId"]))]
        found = account.leftover("volume", item["VolumeId"], price, steps, going=item["State"] == "deleting")
        yield replace(found, weights=tags_of(item).get(WEIGHTS_TAG) == account.name)


def _snapshots(account: Account) -> Iterator[Leftover]:
    for item in account.tagged("describe_snapshots", "Snapshots"):
        steps = [account.step("delete_snapshot", ("SnapshotId", item["SnapshotId"]))]
        yield account.leftover("snapshot", item["SnapshotId"], None, steps)


def _key_pairs(account: Account) -> Iterator[Leftover]:
    named = {"key-name": [resource_name(account.name, "*")]}
    for item in (
        *account.tagged("describe_key_pairs", "KeyPairs"),
        *account.ec2("describe_key_pairs", "KeyPairs", named),
    ):
        if is_ours(account.name, item["KeyName"], tags_of(item), PARTS):
            steps = [account.step("delete_key_pair", ("KeyName", item["KeyName"]))]
            yield account.leftover("key pair", item["KeyName"], 0.0, steps)


def _security_rules(account: Account) -> Iterator[Leftover]:
    """Rules with our tag: they may stand in a group of the user's own."""
    for item in account.tagged("describe_security_group_rules", "SecurityGroupRules"):
        operation = "revoke_security_group_egress" if item["IsEgress"] else "revoke_security_group_ingress"
        rule = item["SecurityGroupRuleId"]
        steps = [account.step(operation, ("GroupId", item["GroupId"]), ("SecurityGroupRuleIds", (rule,)))]
        yield account.leftover("security group rule", rule, 0.0, steps)


def _security_groups(account: Account) -> Iterator[Leftover]:
    for item in account.in_vpc("describe_security_groups", "SecurityGroups"):
        if item["GroupName"] != "default":
            steps = [account.step("delete_security_group", ("GroupId", item["GroupId"]))]
            yield account.leftover("security group", item["GroupId"], 0.0, steps)


def _internet_gateways(account: Account) -> Iterator[Leftover]:
    for item in account.in_vpc("describe_internet_gateways", "InternetGateways", "attachment.vpc-id"):
        id_ = item["InternetGatewayId"]
        steps = [
            account.step("detach_internet_gateway", ("InternetGatewayId", id_), ("VpcId", attached["VpcId"]))
            for attached in item.get("Attachments", [])
        ]
        steps.append(account.step("delete_internet_gateway", ("InternetGatewayId", id_)))
        yield account.leftover("internet gateway", id_, 0.0, steps)


def _route_tables(account: Account) -> Iterator[Leftover]:
    for item in account.in_vpc("describe_route_tables", "RouteTables"):
        links = item.get("Associations", [])
        if any(link.get("Main") for link in links):
            continue  # goes with its VPC
        steps = [
            account.step("disassociate_route_table", ("AssociationId", link["RouteTableAssociationId"]))
            for link in links
        ]
        steps.append(account.step("delete_route_table", ("RouteTableId", item["RouteTableId"])))
        yield account.leftover("route table", item["RouteTableId"], 0.0, steps)


def _subnets(account: Account) -> Iterator[Leftover]:
    for item in account.in_vpc("describe_subnets", "Subnets"):
        steps = [account.step("delete_subnet", ("SubnetId", item["SubnetId"]))]
        yield account.leftover("subnet", item["SubnetId"], 0.0, steps)


def _vpcs(account: Account) -> Iterator[Leftover]:
    for item in account.tagged("describe_vpcs", "Vpcs"):
        steps = [account.step("delete_vpc", ("VpcId", item["VpcId"]))]
        yield account.leftover("VPC", item["VpcId"], 0.0, steps)


def _instance_profiles(account: Account) -> Iterator[Leftover]:
    for item in account.ask("iam", "list_instance_profiles", "InstanceProfiles"):
        name = item["InstanceProfileName"]
        key = {"InstanceProfileName": name}
        if _is_our_identity(account, name, "get_instance_profile", "InstanceProfile", key):
            steps = [
                _iam("remove_role_from_instance_profile", ("InstanceProfileName", name), ("RoleName", role["RoleName"]))
                for role in item["Roles"]
            ]
            steps.append(_iam("delete_instance_profile", ("InstanceProfileName", name)))
            yield Leftover("instance profile", name, GLOBAL, 0.0, tuple(steps))


def _roles(account: Account) -> Iterator[Leftover]:
    for item in account.ask("iam", "list_roles", "Roles"):
        name = item["RoleName"]
        key = {"RoleName": name}
        if not _is_our_identity(account, name, "get_role", "Role", key):
            continue
        steps = [
            _iam("detach_role_policy", ("RoleName", name), ("PolicyArn", policy["PolicyArn"]))
            for policy in account.ask("iam", "list_attached_role_policies", "AttachedPolicies", key)
        ]
        steps += [
            _iam("delete_role_policy", ("RoleName", name), ("PolicyName", str(policy)))
            for policy in account.ask("iam", "list_role_policies", "PolicyNames", key)
        ]
        steps.append(_iam("delete_role", ("RoleName", name)))
        yield Leftover("role", name, GLOBAL, 0.0, tuple(steps))


def _policies(account: Account) -> Iterator[Leftover]:
    for item in account.ask("iam", "list_policies", "Policies", {"Scope": "Local"}):
        arn = item["Arn"]
        if _is_our_identity(account, item["PolicyName"], "get_policy", "Policy", {"PolicyArn": arn}):
            yield Leftover("policy", arn, GLOBAL, 0.0, (_iam("delete_policy", ("PolicyArn", arn)),))


def _is_our_identity(account: Account, name: str, operation: str, part: str, key: Json) -> bool:
    """IAM's lists hold no tags, so names that may be ours are looked at one by one."""
    if not name.startswith(resource_name(account.name, "")):
        return False
    found = getattr(account.client("iam"), operation)(**key)[part]
    return is_ours(account.name, name, tags_of(found), PARTS)


def _iam(operation: str, *arguments: tuple[str, str]) -> Step:
    return call("iam", operation, arguments, None)


def _buckets(account: Account) -> Iterator[Leftover]:
    """In all regions: a bucket's name is unique in the world."""
    for item in account.ask("s3", "list_buckets", "Buckets", {"Prefix": bucket_prefix(account.name)}):
        bucket, region = item["Name"], item.get("BucketRegion", account.region)
        if is_mailbox(account.name, bucket):
            steps = (empty_bucket(bucket, region), call("s3", "delete_bucket", (("Bucket", bucket),), region))
            yield Leftover("bucket", bucket, region, None, steps)


PROBES = (
    Probe("schedule", "scheduler:ListSchedules", _schedules),
    Probe("schedule group", "scheduler:ListScheduleGroups", _schedule_groups),
    Probe("spot request", "ec2:DescribeSpotInstanceRequests", _spot_requests),
    Probe("instance", "ec2:DescribeInstances", _instances),
    Probe("NAT gateway", "ec2:DescribeNatGateways", _nat_gateways),
    Probe("instance connect endpoint", "ec2:DescribeInstanceConnectEndpoints", _connect_endpoints),
    Probe("VPC endpoint", "ec2:DescribeVpcEndpoints", _vpc_endpoints),
    Probe("elastic IP", "ec2:DescribeAddresses", _addresses),
    Probe("network interface", "ec2:DescribeNetworkInterfaces", _interfaces),
    Probe("volume", "ec2:DescribeVolumes", _volumes),
    Probe("snapshot", "ec2:DescribeSnapshots", _snapshots),
    Probe("key pair", "ec2:DescribeKeyPairs", _key_pairs),
    Probe("security group rule", "ec2:DescribeSecurityGroupRules", _security_rules),
    Probe("security group", "ec2:DescribeSecurityGroups", _security_groups),
    Probe("internet gateway", "ec2:DescribeInternetGateways", _internet_gateways),
    Probe("route table", "ec2:DescribeRouteTables", _route_tables),
    Probe("subnet", "ec2:DescribeSubnets", _subnets),
    Probe("VPC", "ec2:DescribeVpcs", _vpcs),
    Probe("instance profile", "iam:ListInstanceProfiles", _instance_profiles),
    Probe("role", "iam:ListRoles", _roles),
    Probe("policy", "iam:ListPolicies", _policies),
    Probe("bucket", "s3:ListAllMyBuckets", _buckets),
)


class AwsSearch:
    """provision.sweep.find.Search for AWS."""

    kinds = tuple(probe.kind for probe in PROBES)

    def __init__(self, region: str, name: str, session: Any = None) -> None:
        self._probes = {probe.kind: probe for probe in PROBES}
        self._session = session or boto3.Session()
        self._account = Account(self._session, region, name)

    def ask(self, kind: str) -> tuple[Leftover, ...] | Unknown:
        probe = self._probes[kind]
        try:
            return tuple(dict.fromkeys(probe.find(self._account)))
        except ClientError as error:
            return refused(kind, probe.permission, error)
        except NoCredentialsError:
            return Unknown(kind, "no AWS credentials were found", probe.permission)
        except NO_ANSWER as error:
            return Unknown(kind, str(error), probe.permission)

    def delete(self, leftover: Leftover) -> str | None:
        return delete(leftover, self._session)


def refused(kind: str, permission: str, error: ClientError) -> Unknown:
    """What a refusal means, in words. `permission`: of the question, whose service is the one that was asked."""
    found = error.response.get("Error", {})
    code = str(found.get("Code", "unknown error"))
    operation = f"{permission.partition(':')[0]}:{error.operation_name}"
    lacking = PERMISSIONS.get(operation, operation)
    if code in DENIED:
        return Unknown(kind, f"not allowed: the credentials lack {lacking} ({code})", lacking)
    if code in NO_KEY:
        return Unknown(kind, "AWS does not take these credentials: wrong, or expired", lacking)
    if code in THROTTLED:
        return Unknown(kind, f"throttled in {ATTEMPTS} tries ({code})", lacking)
    return Unknown(kind, f"{code}: {found.get('Message', '')}", lacking)
