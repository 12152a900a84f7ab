"""What a deployment may have left on Alibaba Cloud: one question per kind of resource, by tag and by name.

`PROBES` stands in the order of deletion: what depends on something comes before it. Not yet run on a real cloud.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from provision.catalog import INSTANCE_TYPES
from provision.naming import TAG, WEIGHTS_TAG, bucket_prefix, resource_name
from provision.sweep.alicloud_client import ATTEMPTS, PRODUCTS, AlicloudClient, ApiError, Json, Product
from provision.sweep.alicloud_oss import MailboxStore
from provision.sweep.model import GLOBAL, Call, EmptyBucket, Leftover, Step, Unknown, is_mailbox, is_ours

# Ends of names (provision.naming.resource_name) of what is found by name where its tags are missing.
PARTS = ("key", "role", "policy", "nat")
# Parts of the codes that say that a thing is not there (InvalidVpcId.NotFound, EntityNotExist.Role).
GONE = ("NotFound", "NotExist", "NoSuch")


class Account:
    """One region of one account as the probes see it, and the VPCs of the deployment in it."""

    def __init__(self, api: AlicloudClient, name: str, env: Mapping[str, str]) -> None:
        self.api = api
        self.region = api.region
        self.name = name
        self.store = MailboxStore(api, env)
        self._vpc_ids: tuple[str, ...] | None = None

    @property
    def vpc_ids(self) -> tuple[str, ...]:
        """VPCs of the deployment; none where they cannot be asked for, which the probe of VPCs then reports."""
        if self._vpc_ids is None:
            try:
                self._vpc_ids = tuple(item["VpcId"] for item in self.tagged("vpc", "DescribeVpcs", ("Vpcs", "Vpc")))
            except ApiError:
                self._vpc_ids = ()
        return self._vpc_ids

    def tagged(self, product: Product, action: str, path: tuple[str, str], tag: str = TAG) -> Iterator[Json]:
        """With our tag, which is looked at here too: what is found may be deleted."""
        for item in self.api.items(product, action, path, {"Tag.1.Key": tag, "Tag.1.Value": self.name}):
            if tags_of(item).get(tag) == self.name:
                yield item

    def in_vpc(self, product: Product, action: str, path: tuple[str, str]) -> Iterator[Json]:
        """With our tag, or inside a VPC of ours: tags of side effects may be missing."""
        yield from self.tagged(product, action, path)
        for vpc in self.vpc_ids:
            yield from self.api.items(product, action, path, {"VpcId": vpc})

    def leftover(
        self, kind: str, id_: str, price: float | None, steps: Iterable[Step], *, going: bool = False
    ) -> Leftover:
        return Leftover(kind, id_, self.region, price, tuple(steps), going)

    def step(self, product: Product, action: str, *arguments: tuple[str, str]) -> Call:
        return call(product, action, (("RegionId", self.region), *arguments))


@dataclass(frozen=True, slots=True)
class Probe:
    """One question. `permission` is what the question needs, in RAM's words."""

    kind: str
    permission: str
    find: Callable[[Account], Iterator[Leftover]]


def call(product: Product, action: str, arguments: Iterable[tuple[str, str]]) -> Call:
    """`arguments` as the API names them; the `aliyun` command names them alike."""
    given = tuple(arguments)
    options = [word for key, value in given for word in (f"--{key}", value)]
    return Call(product, action, given, shlex.join(["aliyun", product, action, *options]))


def tags_of(item: Json) -> dict[str, str]:
    """VPC's APIs say Key and Value, those of ECS and RAM TagKey and TagValue."""
    found = (item.get("Tags") or {}).get("Tag", [])
    return {tag.get("TagKey", tag.get("Key", "")): tag.get("TagValue", tag.get("Value", "")) for tag in found}


def _instances(account: Account) -> Iterator[Leftover]:
    for item in account.in_vpc("ecs", "DescribeInstances", ("Instances", "Instance")):
        id_ = item["InstanceId"]
        steps = [account.step("ecs", "DeleteInstance", ("InstanceId", id_), ("Force", "true"))]
        yield account.leftover("instance", id_, instance_price(item), steps)


def instance_price(item: Json) -> float | None:
    """The catalog's pay-as-you-go price; spot prices move, so they are unknown."""
    if item["Status"] == "Stopped" and item.get("StoppedMode") == "StopCharging":
        return 0.0
    known = INSTANCE_TYPES.get(item["InstanceType"])
    if known is None or known.price is None or item.get("SpotStrategy", "NoSpot") != "NoSpot":
        return None
    return known.price.usd_per_hour


def _snat_entries(account: Account) -> Iterator[Leftover]:
    """Of our NAT gateways, and by name in the user's own."""
    for gateway in account.api.items("vpc", "DescribeNatGateways", ("NatGateways", "NatGateway"), {}):
        ours = tags_of(gateway).get(TAG) == account.name or gateway["VpcId"] in account.vpc_ids
        for table in gateway["SnatTableIds"]["SnatTableId"]:
            path = ("SnatTableEntries", "SnatTableEntry")
            for item in account.api.items("vpc", "DescribeSnatTableEntries", path, {"SnatTableId": table}):
                if ours or is_ours(account.name, item.get("SnatEntryName", ""), {}, PARTS):
                    id_ = item["SnatEntryId"]
                    arguments = (("SnatTableId", table), ("SnatEntryId", id_))
                    yield account.leftover("SNAT entry", id_, 0.0, [account.step("vpc", "DeleteSnatEntry", *arguments)])


def _nat_gateways(account: Account) -> Iterator[Leftover]:
    for item in account.in_vpc("vpc", "DescribeNatGateways", ("NatGateways", "NatGateway")):
        id_ = item["NatGatewayId"]
        steps = [account.step("vpc", "DeleteNatGateway", ("NatGatewayId", id_), ("Force", "true"))]
        yield account.leftover("NAT gateway", id_, None, steps, going=item["Status"] == "Deleting")


def _addresses(account: Account) -> Iterator[Leftover]:
    for item in account.tagged("vpc", "DescribeEipAddresses", ("EipAddresses", "EipAddress")):
        id_ = item["AllocationId"]
        steps = [account.step("vpc", "ReleaseEipAddress", ("AllocationId", id_))]
        if item.get("InstanceId"):
            steps.insert(0, account.step("vpc", "UnassociateEipAddress", ("AllocationId", id_), ("Force", "true")))
        yield account.leftover("elastic IP", id_, None, steps, going=item["Status"] == "Releasing")


def _disks(account: Account) -> Iterator[Leftover]:
    path = ("Disks", "Disk")
    tagged = account.tagged("ecs", "DescribeDisks", path)
    for item in (*tagged, *account.tagged("ecs", "DescribeDisks", path, WEIGHTS_TAG)):
        id_ = item["DiskId"]
        steps = [account.step("ecs", "DeleteDisk", ("DiskId", id_))]
        found = account.leftover("disk", id_, None, steps)
        yield replace(found, weights=tags_of(item).get(WEIGHTS_TAG) == account.name)


def _snapshots(account: Account) -> Iterator[Leftover]:
    for item in account.tagged("ecs", "DescribeSnapshots", ("Snapshots", "Snapshot")):
        id_ = item["SnapshotId"]
        steps = [account.step("ecs", "DeleteSnapshot", ("SnapshotId", id_), ("Force", "true"))]
        yield account.leftover("snapshot", id_, None, steps)


def _interfaces(account: Account) -> Iterator[Leftover]:
    """Secondary ones, which are things of their own: a primary one goes with its instance."""
    path = ("NetworkInterfaceSets", "NetworkInterfaceSet")
    for item in account.in_vpc("ecs", "DescribeNetworkInterfaces", path):
        if item.get("Type") != "Primary" and not item.get("ServiceManaged"):
            id_ = item["NetworkInterfaceId"]
            steps = [account.step("ecs", "DeleteNetworkInterface", ("NetworkInterfaceId", id_))]
            yield account.leftover("network interface", id_, 0.0, steps, going=item["Status"] == "Deleting")


def _key_pairs(account: Account) -> Iterator[Leftover]:
    path = ("KeyPairs", "KeyPair")
    named = account.api.items("ecs", "DescribeKeyPairs", path, {"KeyPairName": resource_name(account.name, "*")})
    for item in (*account.tagged("ecs", "DescribeKeyPairs", path), *named):
        name = item["KeyPairName"]
        if is_ours(account.name, name, tags_of(item), PARTS):
            steps = [account.step("ecs", "DeleteKeyPairs", ("KeyPairNames", f'["{name}"]'))]
            yield account.leftover("key pair", name, 0.0, steps)


def _security_groups(account: Account) -> Iterator[Leftover]:
    for item in account.in_vpc("ecs", "DescribeSecurityGroups", ("SecurityGroups", "SecurityGroup")):
        if not item.get("ServiceManaged"):
            id_ = item["SecurityGroupId"]
            steps = [account.step("ecs", "DeleteSecurityGroup", ("SecurityGroupId", id_))]
            yield account.leftover("security group", id_, 0.0, steps)


def _vswitches(account: Account) -> Iterator[Leftover]:
    for item in account.in_vpc("vpc", "DescribeVSwitches", ("VSwitches", "VSwitch")):
        steps = [account.step("vpc", "DeleteVSwitch", ("VSwitchId", item["VSwitchId"]))]
        yield account.leftover("vswitch", item["VSwitchId"], 0.0, steps)


def _vpcs(account: Account) -> Iterator[Leftover]:
    for item in account.tagged("vpc", "DescribeVpcs", ("Vpcs", "Vpc")):
        steps = [account.step("vpc", "DeleteVpc", ("VpcId", item["VpcId"]))]
        yield account.leftover("VPC", item["VpcId"], 0.0, steps)


def _roles(account: Account) -> Iterator[Leftover]:
    for item in account.api.items("ram", "ListRoles", ("Roles", "Role"), {}):
        name = item["RoleName"]
        if not is_ours(account.name, name, tags_of(item), PARTS):
            continue
        attached = account.api.call("ram", "ListPoliciesForRole", {"RoleName": name})["Policies"]["Policy"]
        steps = [
            _ram(
                "DetachPolicyFromRole",
                ("PolicyType", policy["PolicyType"]),
                ("PolicyName", policy["PolicyName"]),
                ("RoleName", name),
            )
            for policy in attached
        ]
        steps.append(_ram("DeleteRole", ("RoleName", name)))
        yield Leftover("RAM role", name, GLOBAL, 0.0, tuple(steps))


def _policies(account: Account) -> Iterator[Leftover]:
    for item in account.api.items("ram", "ListPolicies", ("Policies", "Policy"), {"PolicyType": "Custom"}):
        name = item["PolicyName"]
        if is_ours(account.name, name, tags_of(item), PARTS):
            steps = (_ram("DeletePolicy", ("PolicyName", name)),)
            yield Leftover("RAM policy", name, GLOBAL, 0.0, steps)


def _ram(action: str, *arguments: tuple[str, str]) -> Call:
    return call("ram", action, arguments)


def _buckets(account: Account) -> Iterator[Leftover]:
    """In all regions: a bucket's name is unique in the world."""
    for bucket, region in account.store.mailboxes(bucket_prefix(account.name)):
        if is_mailbox(account.name, bucket):
            empty = shlex.join(["aliyun", "oss", "rm", f"oss://{bucket}", "-a", "-r", "-f", "--region", region])
            delete = shlex.join(["aliyun", "oss", "rm", f"oss://{bucket}", "-b", "-f", "--region", region])
            steps = (EmptyBucket(bucket, empty), Call("oss", "DeleteBucket", (("Bucket", bucket),), delete))
            yield Leftover("bucket", bucket, region, None, steps)


PROBES = (
    Probe("instance", "ecs:DescribeInstances", _instances),
    Probe("SNAT entry", "vpc:DescribeSnatTableEntries", _snat_entries),
    Probe("NAT gateway", "vpc:DescribeNatGateways", _nat_gateways),
    Probe("elastic IP", "vpc:DescribeEipAddresses", _addresses),
    Probe("disk", "ecs:DescribeDisks", _disks),
    Probe("snapshot", "ecs:DescribeSnapshots", _snapshots),
    Probe("network interface", "ecs:DescribeNetworkInterfaces", _interfaces),
    Probe("key pair", "ecs:DescribeKeyPairs", _key_pairs),
    Probe("security group", "ecs:DescribeSecurityGroups", _security_groups),
    Probe("vswitch", "vpc:DescribeVSwitches", _vswitches),
    Probe("VPC", "vpc:DescribeVpcs", _vpcs),
    Probe("RAM role", "ram:ListRoles", _roles),
    Probe("RAM policy", "ram:ListPolicies", _policies),
    Probe("bucket", "oss:ListBuckets", _buckets),
)


class AlicloudSearch:
    """provision.sweep.find.Search for Alibaba Cloud. `pause` waits the given seconds between tries."""

    kinds = tuple(probe.kind for probe in PROBES)

    def __init__(
        self,
        region: str,
        name: str,
        env: Mapping[str, str] | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        environment = os.environ if env is None else env
        self._probes = {probe.kind: probe for probe in PROBES}
        self._account = Account(AlicloudClient(region, environment, pause), name, environment)

    def ask(self, kind: str) -> tuple[Leftover, ...] | Unknown:
        probe = self._probes[kind]
        try:
            return tuple(dict.fromkeys(probe.find(self._account)))
        except ApiError as error:
            permission = error.permission or probe.permission
            return Unknown(kind, reason_of(error, permission), permission)
        except (KeyError, TypeError) as error:
            # No answer of this API has been seen on a real account yet.
            return Unknown(kind, f"the answer is not as documented ({error!r})", probe.permission)

    def delete(self, leftover: Leftover) -> str | None:
        for step in leftover.steps:
            try:
                self._execute(step, leftover.region)
            except ApiError as error:
                if not any(word in error.code for word in GONE):
                    return str(error)
        return None

    def _execute(self, step: Step, region: str) -> None:
        if isinstance(step, EmptyBucket):
            self._account.store.empty(step.bucket, region)
        elif step.service == "oss":
            self._account.store.delete(str(dict(step.arguments)["Bucket"]), region)
        else:
            arguments = {key: str(value) for key, value in step.arguments}
            self._account.api.call(PRODUCTS[step.service], step.operation, arguments)


def reason_of(error: ApiError, permission: str) -> str:
    if error.meaning == "denied":
        return f"not allowed: the credentials lack {permission} ({error.code})"
    if error.meaning == "throttled":
        return f"no answer in {ATTEMPTS} tries ({error})"
    return str(error)
