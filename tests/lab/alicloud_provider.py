"""The test engine's provider for `alicloud`: resources and data sources over AlicloudCloud."""

from __future__ import annotations

import re
from collections.abc import Callable

from provision.catalog import INSTANCE_TYPES
from tests.lab.alicloud_cloud import INSTANCE, REPLACES, AlicloudCloud, Refused
from tests.lab.pulumi_model import Created, OutsideTheLab
from tests.lab.pulumi_wire import Properties

PACKAGE = "alicloud:"


class AlicloudProvider:
    """Refuses what speaks of another region than the cloud's: a forgotten provider shows."""

    def __init__(self, cloud: AlicloudCloud) -> None:
        self.cloud = cloud
        self.sources: dict[str, Callable[[Properties], Properties]] = {
            "ecs/getEcsDisks:getEcsDisks": self._disks,
            "ecs/getEipAddresses:getEipAddresses": lambda args: self._ids("EipAddress", args),
            "ecs/getImages:getImages": self._images,
            "ecs/getInstanceTypes:getInstanceTypes": self._instance_types,
            "ecs/getInstances:getInstances": lambda args: self._ids("/instance:Instance", args),
            "index/getZones:getZones": self._zones,
            "oss/getBucketObjects:getBucketObjects": self._objects,
            "oss/getBuckets:getBuckets": self._buckets,
            "quotas/getQuotas:getQuotas": self._quotas,
            "vpc/getNetworks:getNetworks": lambda args: self._ids("Network", args),
            "vpc/getSwitches:getSwitches": self._switches,
        }

    def replaces(self, token: str) -> frozenset[str]:
        if _kind(token) not in REPLACES:
            raise OutsideTheLab(f"resources of type {token}", "tests/lab/alicloud_cloud.py: REPLACES, IDS or NAMED")
        return frozenset(REPLACES[_kind(token)])

    def create(self, token: str, name: str, inputs: Properties, settings: Properties) -> Created:
        self._check_region(settings)
        return self.cloud.create(_kind(token), name, inputs)

    def update(self, token: str, id: str, inputs: Properties, outputs: Properties, settings: Properties) -> Properties:
        self._check_region(settings)
        return self.cloud.update(_kind(token), id, inputs)

    def read(self, token: str, id: str) -> Properties:
        """What a refresh finds: only a machine changes without the program."""
        return {"status": self.cloud.get(id).values["status"]} if _kind(token) == INSTANCE else {}

    def delete(self, token: str, id: str, outputs: Properties, settings: Properties) -> None:
        self.cloud.delete(_kind(token), id)

    def invoke(self, token: str, args: Properties, settings: Properties) -> Properties:
        self._check_region(settings)
        name = token.rpartition(":")[2]
        if name in self.cloud.denied:
            raise Refused("Forbidden.RAM", f"the user may not call {name}")
        if _kind(token) not in self.sources:
            raise OutsideTheLab(f"the data source {token}", "tests/lab/alicloud_provider.py: AlicloudProvider.sources")
        found = self.sources[_kind(token)](args)
        return {"id": name, **args, **found}

    def _check_region(self, settings: Properties) -> None:
        if settings.get("region") != self.cloud.region:
            raise Refused("InvalidRegionId.NotFound", f"asked in {settings.get('region')}")

    def _ids(self, kind: str, args: Properties) -> Properties:
        return {"ids": [item.id for item in self.cloud.find(kind, args.get("tags"))]}

    def _zones(self, args: Properties) -> Properties:
        kind = args.get("availableInstanceType")
        zones = self.cloud.zones_of(kind) if kind else self.cloud.zones
        if not zones:  # the provider's own words
            raise LookupError(f"There is no availability resources in the region {self.cloud.region}.")
        return {"ids": list(zones), "zones": [{"id": zone} for zone in zones]}

    def _switches(self, args: Properties) -> Properties:
        """The user's own vSwitch, in the first zone."""
        zone = self.cloud.zones[0]
        is_there = args.get("zoneId") in (None, zone)
        switches = [{"id": "vsw-own", "zoneId": zone, "vpcId": "vpc-own"}] if is_there else []
        return {"ids": [item["id"] for item in switches], "vswitches": switches}

    def _disks(self, args: Properties) -> Properties:
        """Those of the account; the user's own ones are in the first zone."""
        zones = {item.id: item.values["zoneId"] for item in self.cloud.find("EcsDisk")}
        zones |= dict.fromkeys(self.cloud.foreign, self.cloud.zones[0])
        disks = [{"id": id, "diskId": id, "zoneId": zones[id]} for id in args["ids"] if id in zones]
        return {"disks": disks}

    def _images(self, args: Properties) -> Properties:
        wanted, pattern = args.get("imageId"), args.get("nameRegex", "")
        known = [*self.cloud.images, *([wanted] if wanted and wanted.startswith("m-") else [])]
        found = [name for name in known if (name == wanted if wanted else re.search(pattern, name))]
        newest = sorted(found, reverse=True)[:1]
        images = [{"id": name, "name": name, "architecture": "x86_64", "size": 20} for name in newest]
        return {"ids": newest, "images": images}

    def _instance_types(self, args: Properties) -> Properties:
        kind = args["instanceType"]
        if kind not in self.cloud.prices:
            raise Refused("NotApplicable", "no price")
        return {"ids": [kind], "instanceTypes": [{"id": kind, "price": str(self.cloud.prices[kind])}]}

    def _buckets(self, args: Properties) -> Properties:
        names = [item.id for item in self.cloud.find("/bucket:Bucket") if re.search(args["nameRegex"], item.id)]
        location = f"oss-{self.cloud.region}"
        return {"names": names, "buckets": [{"name": name, "location": location} for name in names]}

    def _objects(self, args: Properties) -> Properties:
        self.cloud.check_store()
        held = (item.values for item in self.cloud.find("BucketObject") if item.values["bucket"] == args["bucketName"])
        return {"objects": [{"key": item["key"]} for item in held if item["key"].startswith(args["keyPrefix"])]}

    def _quotas(self, args: Properties) -> Properties:
        """By instance type in machines of the default 10; else VPCs and addresses."""
        product = args["productCode"]
        if product == "ecs-spec":
            code = args["quotaActionCode"]
            used = sum(item.values["instanceType"] == code for item in self.cloud.find("/instance:Instance"))
            vcpus = INSTANCE_TYPES[code].vcpus
            return _quota(code, "vCPU", self.cloud.quotas.get(code, 10 * vcpus), used * vcpus)
        kind, code = {
            "vpc": ("Network", f"vpc_quota_instances_num_{self.cloud.region}"),
            "eip": ("EipAddress", "eip_quota_instances_num"),
        }[product]
        return _quota(code, "Count", self.cloud.quotas.get(product, 10), len(self.cloud.find(kind)))


def _quota(code: str, unit: str, total: float, used: float) -> Properties:
    quota = {"id": code, "quotaActionCode": code, "quotaUnit": unit, "totalQuota": total, "totalUsage": used}
    return {"quotas": [{**quota, "consumable": True}]}


def _kind(token: str) -> str:
    return token.removeprefix(PACKAGE)
