"""Alibaba Cloud in memory, for the test engine: resources with ids, and the refusals that the real one is known for.

What depends on something keeps it from being deleted, names that must be unique are, zones sell only some types. What
is left of a deployment is a question: `find(tags=…)`, `named(…)`. Not Alibaba Cloud: a pass here is "held in the lab".
"""

from __future__ import annotations

import datetime
import ipaddress
import itertools
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tests.lab.pulumi_model import Created
from tests.lab.pulumi_wire import Properties

REGION = "cn-hangzhou"
IMAGE = "ubuntu_24_04_x64_20G_alibase_20261016.vhd"
OLD_IMAGE = "ubuntu_24_04_x64_20G_alibase_20240923.vhd"
ESSD_ONLY = ("ecs.gn7i", "ecs.gn7e", "ecs.gn8")
SHORTEST_LIFE = datetime.timedelta(minutes=30)

# Resource type: the start of its ids. Attachments and rules have ids made of those that they join.
IDS = {
    "ecs/ecsDisk:EcsDisk": "d-bp1",
    "ecs/eipAddress:EipAddress": "eip-bp1",
    "ecs/instance:Instance": "i-bp1",
    "ecs/securityGroup:SecurityGroup": "sg-bp1",
    "ecs/securityGroupRule:SecurityGroupRule": "sgr-bp1",
    "vpc/natGateway:NatGateway": "ngw-bp1",
    "vpc/network:Network": "vpc-bp1",
    "vpc/snatEntry:SnatEntry": "snat-bp1",
    "vpc/switch:Switch": "vsw-bp1",
}
# Resource type: the input that is its id and must be unique in account or region.
NAMED = {
    "ecs/ecsKeyPair:EcsKeyPair": "keyPairName",
    "oss/bucket:Bucket": "bucket",
    "ram/policy:Policy": "policyName",
    "ram/role:Role": "roleName",
}
# Inputs that hold ids of other resources: those cannot be deleted before.
REFERENCES = (
    "allocationId", "bucket", "diskId", "instanceId", "keyName", "policyName", "ramRoleName", "roleName",
    "securityGroupId", "securityGroups", "snatTableId", "vpcId", "vswitchId",
)  # fmt: skip
# Resource type: inputs whose change needs a new resource.
REPLACES = {
    "ecs/ecsDisk:EcsDisk": {"zoneId", "encrypted"},
    "ecs/ecsDiskAttachment:EcsDiskAttachment": {"diskId", "instanceId"},
    "ecs/ecsKeyPair:EcsKeyPair": {"keyPairName", "publicKey"},
    "ecs/eipAssociation:EipAssociation": {"allocationId", "instanceId", "instanceType"},
    "ecs/instance:Instance": {"availabilityZone", "systemDiskCategory", "systemDiskEncrypted", "spotStrategy"},
    "ecs/ramRoleAttachment:RamRoleAttachment": {"instanceId", "ramRoleName"},
    "ecs/securityGroup:SecurityGroup": {"vpcId", "securityGroupType"},
    "ecs/securityGroupRule:SecurityGroupRule": {"cidrIp", "ipProtocol", "nicType", "portRange", "securityGroupId"},
    "oss/bucket:Bucket": {"bucket", "redundancyType"},
    "oss/bucketAcl:BucketAcl": {"bucket"},
    "oss/bucketObject:BucketObject": {"bucket", "key"},
    "oss/bucketPublicAccessBlock:BucketPublicAccessBlock": {"bucket"},
    "ram/policy:Policy": {"policyName"},
    "ram/role:Role": {"roleName"},
    "ram/rolePolicyAttachment:RolePolicyAttachment": {"policyName", "policyType", "roleName"},
    "vpc/natGateway:NatGateway": {"networkType", "vpcId"},
    "vpc/network:Network": {"cidrBlock"},
    "vpc/snatEntry:SnatEntry": {"snatTableId", "sourceCidr"},
    "vpc/switch:Switch": {"cidrBlock", "vpcId", "zoneId"},
}
# What a forced deletion takes along: RAM's attachments with a role or policy, everything in a bucket.
FORCED = ("ram/role:Role", "ram/policy:Policy", "oss/bucket:Bucket")
# A rule is a part of its group.
GROUP, RULE = "ecs/securityGroup:SecurityGroup", "ecs/securityGroupRule:SecurityGroupRule"
# What ends with a machine by itself: its address, role and disk are free again.
INSTANCE = "ecs/instance:Instance"
ATTACHMENTS = (
    "ecs/ecsDiskAttachment:EcsDiskAttachment",
    "ecs/eipAssociation:EipAssociation",
    "ecs/ramRoleAttachment:RamRoleAttachment",
)


class Refused(Exception):
    """The cloud's answer to what it does not do: a code, and words."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"[ERROR] terraform-provider-alicloud: Code: {code} Message: {message}")
        self.code = code


@dataclass(slots=True)
class Thing:
    """One resource. `values`: inputs and outputs by their names on the wire; `holds`: ids that it depends on."""

    type: str
    id: str
    values: Properties
    holds: frozenset[str]

    @property
    def tags(self) -> dict[str, str]:
        return dict(self.values.get("tags") or {})

    @property
    def name(self) -> str:
        """The name that a person gave, or the id."""
        for key in (*NAMED.values(), "instanceName", "vpcName", "vswitchName", "securityGroupName", "addressName"):
            if key in self.values and NAMED.get(self.type, key) == key:
                return str(self.values[key])
        return str(self.values.get("natGatewayName") or self.values.get("diskName") or self.id)


@dataclass
class AlicloudCloud:
    """One account. `sells`: zones by instance type; `sold_out`: (type, zone) that have no stock now, which zones by
    type leave out as the provider does; `denied`: data sources that the account may not call."""

    region: str = REGION
    zones: tuple[str, ...] = ("cn-hangzhou-b", "cn-hangzhou-h", "cn-hangzhou-i")
    sells: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sold_out: set[tuple[str, str]] = field(default_factory=set)
    images: list[str] = field(default_factory=lambda: [IMAGE, OLD_IMAGE])
    quotas: dict[str, float] = field(default_factory=dict)
    prices: dict[str, float] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)
    is_public_oss_forbidden: bool = False
    foreign: tuple[str, ...] = ("vpc-own", "vsw-own", "sg-own", "d-kept")  # the user's own, beside what is made here
    addresses: str = "203.0.113."  # how public addresses begin
    things: dict[tuple[str, str], Thing] = field(default_factory=dict)
    now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC)

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self.numbers = itertools.count(1)

    def find(self, kind: str = "", tags: Mapping[str, str] | None = None) -> list[Thing]:
        """Things whose type ends in `kind` ("Instance") and that carry all of `tags`."""
        wanted = (tags or {}).items()
        return [item for item in self.things.values() if item.type.endswith(kind) and wanted <= item.tags.items()]

    def named(self, prefix: str) -> list[Thing]:
        return [item for item in self.things.values() if item.name.startswith(prefix)]

    def get(self, id: str) -> Thing:
        """Raises Refused for an id that nothing has."""
        found = [item for item in self.things.values() if item.id == id]
        if not found:
            raise Refused("InvalidResource.NotFound", f"{id} does not exist")
        return found[0]

    def plant(self, kind: str, values: Properties) -> Thing:
        """A resource that no program made, for example an orphan: `kind` is a resource type without the package."""
        with self.lock:
            return self._add(kind, f"planted-{next(self.numbers)}", values, {})

    def create(self, kind: str, name: str, inputs: Properties) -> Created:
        with self.lock:
            outputs = self._check(kind, inputs)
            made = self._add(kind, name, inputs, outputs)
            return Created(made.id, {key: value for key, value in made.values.items() if key not in inputs})

    def update(self, kind: str, id: str, inputs: Properties) -> Properties:
        with self.lock:
            thing = self.things[kind, id]
            if kind == INSTANCE:
                self._check_life(inputs)
                self._check_power(thing, inputs)
                if inputs["systemDiskSize"] < thing.values["systemDiskSize"]:
                    raise Refused("InvalidDiskSize.TooSmall", "a disk cannot shrink")
            thing.values = {**thing.values, **inputs}
            for gone in thing.values.keys() - inputs.keys() & {"autoReleaseTime"}:
                thing.values.pop(gone)
            thing.holds = _held(thing.values, except_for=id)
            return dict(thing.values)

    def switch_off(self, id: str) -> None:
        """By the API, and not by the program."""
        with self.lock:
            machine = self.things[INSTANCE, id]
            machine.values = {**machine.values, "status": "Stopped"}

    def delete(self, kind: str, id: str) -> None:
        with self.lock:
            thing = self.things.get((kind, id))
            if thing is None:
                return
            users = [] if kind not in (*IDS, *NAMED) else [item for item in self.things.values() if id in item.holds]
            is_forced = kind in FORCED and (thing.values.get("force") or thing.values.get("forceDestroy"))
            parts = {INSTANCE: ATTACHMENTS, GROUP: (RULE,)}.get(kind, ())
            going = [item for item in users if is_forced or item.type in parts]
            if len(going) < len(users):
                words = ", ".join(sorted(f"{item.type} {item.id}" for item in users if item not in going))
                raise Refused("DependencyViolation", f"{kind} {id} is used by {words}")
            for item in going:
                del self.things[item.type, item.id]
            del self.things[kind, id]

    def _add(self, kind: str, name: str, inputs: Properties, outputs: Properties) -> Thing:
        id = self._id(kind, inputs)
        if (kind, id) in self.things:
            raise Refused("EntityAlreadyExists", f"{kind} {id} exists")
        values = {**inputs, **outputs}
        if kind == "vpc/natGateway:NatGateway":
            values["snatTableIds"] = f"stb-{id}"
        self.things[kind, id] = Thing(kind, id, values, _held(inputs, except_for=id))
        return self.things[kind, id]

    def _id(self, kind: str, inputs: Properties) -> str:
        if kind in NAMED:
            return str(inputs[NAMED[kind]])
        if kind in IDS:
            return f"{IDS[kind]}{next(self.numbers):06x}"
        parts = [inputs[key] for key in ("bucket", "key", *REFERENCES) if isinstance(inputs.get(key), str)]
        return ":".join(dict.fromkeys(parts))

    def _check(self, kind: str, inputs: Properties) -> Properties:
        """What creation adds. Raises Refused for what the cloud would not make."""
        itself = str(inputs.get(NAMED.get(kind, ""), ""))
        for id in _held(inputs, except_for=itself) - {*self.foreign}:
            self.get(id)
        checks = {
            "ecs/ecsKeyPair:EcsKeyPair": self._check_key,
            "ecs/eipAddress:EipAddress": self._new_address,
            INSTANCE: self._check_instance,
            "oss/bucketObject:BucketObject": self._check_object,
            "vpc/switch:Switch": self._check_switch,
        }
        return checks[kind](inputs) if kind in checks else {}

    def _check_key(self, inputs: Properties) -> Properties:
        if not inputs["publicKey"].startswith(("ssh-rsa ", "ecdsa-")):
            raise Refused("InvalidPublicKeyBody.Malformed", "the specified public key is not supported")
        return {}

    def _new_address(self, inputs: Properties) -> Properties:
        return {"ipAddress": f"{self.addresses}{len(self.find('EipAddress')) + 10}"}

    def _check_object(self, inputs: Properties) -> Properties:
        self.check_store()
        return {"etag": "0"}

    def check_store(self) -> None:
        """Raises Refused where objects may not be read or written from outside."""
        if self.is_public_oss_forbidden:
            raise Refused("PublicEndpointForbidden", "the public endpoint is not for this account")

    def _check_switch(self, inputs: Properties) -> Properties:
        block = ipaddress.ip_network(inputs["cidrBlock"])
        vpc = self.get(inputs["vpcId"])
        if not block.subnet_of(ipaddress.ip_network(vpc.values["cidrBlock"])):  # type: ignore[arg-type]
            raise Refused("InvalidCidrBlock", "it lies outside of the VPC")
        for other in self.find("Switch"):
            if other.values["vpcId"] == vpc.id and block.overlaps(ipaddress.ip_network(other.values["cidrBlock"])):
                raise Refused("InvalidCidrBlock.Overlapped", "it overlaps another vSwitch")
        if inputs["zoneId"] not in self.zones:
            raise Refused("InvalidZoneId.NotFound", inputs["zoneId"])
        return {}

    def _check_instance(self, inputs: Properties) -> Properties:
        kind, own = inputs["instanceType"], inputs["vswitchId"] in self.foreign
        switch = None if own else self.get(inputs["vswitchId"])
        zone = switch.values["zoneId"] if switch else self.zones[0]
        if zone not in self.zones_of(kind, in_stock=False):
            raise Refused("Zone.NotOnSale", f"{kind} is not sold in {zone}")
        if (kind, zone) in self.sold_out:
            raise Refused("OperationDenied.NoStock", "The requested resource is sold out in the specified zone")
        if inputs["imageId"] not in self.images and not inputs["imageId"].startswith("m-"):
            raise Refused("InvalidImageId.NotFound", inputs["imageId"])
        if kind.startswith(ESSD_ONLY) and inputs["systemDiskCategory"] not in ("cloud_essd", "cloud_auto"):
            raise Refused("InvalidSystemDiskCategory.ValueNotSupported", inputs["systemDiskCategory"])
        if inputs.get("internetMaxBandwidthOut", 1) and inputs.get("vswitchId"):
            raise Refused("InvalidParameter", "an address of the system is not wanted beside an EIP")
        self._check_life(inputs)
        address = inputs.get("privateIp") or "192.168.0.17"
        if switch and ipaddress.ip_address(address) not in ipaddress.ip_network(switch.values["cidrBlock"]):
            raise Refused("InvalidPrivateIpAddress", f"{address} lies outside of the vSwitch")
        if any(item.values["privateIp"] == address for item in self.find("/instance:Instance")):
            raise Refused("InvalidPrivateIpAddress.Duplicated", address)
        return {"availabilityZone": zone, "privateIp": address, "status": "Running", "publicIp": ""}

    def _check_power(self, machine: Thing, inputs: Properties) -> None:
        """A machine that was stopped to save money has given its GPU back."""
        starts = inputs.get("status", "Running") == "Running" and machine.values["status"] == "Stopped"
        if starts and (inputs["instanceType"], machine.values["availabilityZone"]) in self.sold_out:
            raise Refused("OperationDenied.NoStock", "The requested resource is sold out in the specified zone")

    def _check_life(self, inputs: Properties) -> None:
        end = inputs.get("autoReleaseTime")
        if end is None:
            return
        at = datetime.datetime.strptime(end, "%Y-%m-%dT%H:%M:00Z").replace(tzinfo=datetime.UTC)
        if at - self.now() < SHORTEST_LIFE:
            raise Refused("InvalidAutoReleaseTime", "it must be half an hour ahead")

    def zones_of(self, kind: str, *, in_stock: bool = True) -> tuple[str, ...]:
        zones = self.sells.get(kind, self.zones)
        return tuple(zone for zone in zones if not in_stock or (kind, zone) not in self.sold_out)


def _held(values: Properties, *, except_for: str) -> frozenset[str]:
    found: set[str] = set()
    for key in REFERENCES:
        value = values.get(key)
        items: Iterable[str] = value if isinstance(value, list) else [value] if isinstance(value, str) else []
        found |= {item.removeprefix("stb-") for item in items}
    return frozenset(found - {except_for})
