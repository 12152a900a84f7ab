"""Shows what the test engine's account holds to those who speak Alibaba Cloud's APIs, with the APIs' own fields."""

from __future__ import annotations

from typing import Any

from tests.lab.alicloud_api import AlicloudApi
from tests.lab.alicloud_cloud import AlicloudCloud, Thing

# Resource type: the action that lists it, and the API's names of its fields by the provider's ("id": its id).
SHOWN: dict[str, tuple[str, dict[str, str]]] = {
    "ecs/ecsDisk:EcsDisk": ("DescribeDisks", {"DiskId": "id", "Category": "category", "Size": "size"}),
    "ecs/ecsKeyPair:EcsKeyPair": ("DescribeKeyPairs", {"KeyPairName": "keyPairName"}),
    "ecs/eipAddress:EipAddress": ("DescribeEipAddresses", {"AllocationId": "id", "IpAddress": "ipAddress"}),
    "ecs/instance:Instance": (
        "DescribeInstances",
        {"InstanceId": "id", "InstanceType": "instanceType", "Status": "status", "SpotStrategy": "spotStrategy"},
    ),
    "ecs/securityGroup:SecurityGroup": ("DescribeSecurityGroups", {"SecurityGroupId": "id", "VpcId": "vpcId"}),
    "ram/policy:Policy": ("ListPolicies", {"PolicyName": "policyName"}),
    "ram/role:Role": ("ListRoles", {"RoleName": "roleName"}),
    "vpc/natGateway:NatGateway": ("DescribeNatGateways", {"NatGatewayId": "id", "VpcId": "vpcId"}),
    "vpc/network:Network": ("DescribeVpcs", {"VpcId": "id"}),
    "vpc/snatEntry:SnatEntry": (
        "DescribeSnatTableEntries",
        {"SnatEntryId": "id", "SnatTableId": "snatTableId", "SnatEntryName": "snatEntryName"},
    ),
    "vpc/switch:Switch": ("DescribeVSwitches", {"VSwitchId": "id", "VpcId": "vpcId"}),
}


def show(cloud: AlicloudCloud, api: AlicloudApi) -> set[str]:
    """Puts everything into the lists of `api`. Returns the ids of what stands there; the rest is part of it."""
    for thing in cloud.find():
        if thing.type in SHOWN:
            action, names = SHOWN[thing.type]
            fields = {name: thing.id if key == "id" else thing.values[key] for name, key in names.items()}
            api.add(action, thing.tags, **fields, **_more(thing))
        elif thing.type == "oss/bucket:Bucket":
            held = [item for item in cloud.find("BucketObject") if item.values["bucket"] == thing.id]
            api.buckets[thing.id] = [str(item.values["key"]) for item in held]
        elif thing.type == "ecs/eipAssociation:EipAssociation":
            api.associated.add(str(thing.values["allocationId"]))
        elif thing.type == "ram/rolePolicyAttachment:RolePolicyAttachment":
            api.attached.setdefault(str(thing.values["roleName"]), []).append(str(thing.values["policyName"]))
    for item in api.items["DescribeEipAddresses"]:
        bound = item["AllocationId"] in api.associated
        item.update(Status="InUse" if bound else "Available", InstanceId="bound" if bound else "")
    return {thing.id for thing in cloud.find() if thing.type in (*SHOWN, "oss/bucket:Bucket")}


def _more(thing: Thing) -> dict[str, Any]:
    if thing.type == "vpc/natGateway:NatGateway":
        return {"Status": "Available", "SnatTableIds": {"SnatTableId": [thing.values["snatTableIds"]]}}
    return {}
