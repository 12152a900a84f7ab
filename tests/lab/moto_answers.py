"""Data sources of the test engine's AWS: what moto knows is asked of moto, the rest is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.lab.moto_kind import Clients
from tests.lab.pulumi_model import OutsideTheLab
from tests.lab.pulumi_wire import Properties

QUOTA = 192.0  # of every limit: vCPUs, addresses, networks
SPOT_PRICE = "0.3456"
ON_DEMAND_PRICE = "1.8610000000"
PARAMETER_IMAGE = "ami-1e749f67"  # one of moto's own


def answer(clients: Clients, token: str, args: Properties) -> Properties:
    """Raises LookupError for what AWS would not find, OutsideTheLab for a question that nobody has recorded."""
    if token not in ANSWERS:
        raise OutsideTheLab(f"an answer to {token}", "tests/lab/moto_answers.py: ANSWERS")
    return ANSWERS[token](clients, args)


def _filters(args: Properties) -> list[dict[str, Any]]:
    found = [{"Name": item["name"], "Values": item["values"]} for item in args.get("filters") or []]
    for name in ("tags", "instanceTags"):
        found += [{"Name": f"tag:{key}", "Values": [value]} for key, value in (args.get(name) or {}).items()]
    if states := args.get("instanceStateNames"):
        found.append({"Name": "instance-state-name", "Values": states})
    return found


def _image(clients: Clients, args: Properties) -> Properties:
    found = clients.ec2.describe_images(
        Filters=_filters(args), **({"Owners": args["owners"]} if args.get("owners") else {})
    )["Images"]
    if not found:
        raise LookupError("Your query returned no results. Please change your search criteria and try again.")
    newest = max(found, key=lambda image: str(image["CreationDate"]))
    disks = [
        {"deviceName": item["DeviceName"], "ebs": {"volume_size": str(item["Ebs"]["VolumeSize"])}}
        for item in newest["BlockDeviceMappings"]
        if "Ebs" in item
    ]
    id = newest["ImageId"]
    return {
        "id": id,
        "imageId": id,
        "name": newest["Name"],
        "architecture": newest["Architecture"],
        "bootMode": newest.get("BootMode", ""),
        "blockDeviceMappings": disks,
    }


def _offerings(clients: Clients, args: Properties) -> Properties:
    found = clients.ec2.describe_instance_type_offerings(LocationType=args["locationType"], Filters=_filters(args))
    offers = found["InstanceTypeOfferings"]
    return {
        "id": clients.region,
        "instanceTypes": [item["InstanceType"] for item in offers],
        "locations": [item["Location"] for item in offers],
        "locationTypes": [item["LocationType"] for item in offers],
    }


def _zones(clients: Clients, args: Properties) -> Properties:
    found = clients.ec2.describe_availability_zones(Filters=[])["AvailabilityZones"]
    return {
        "id": clients.region,
        "names": [zone["ZoneName"] for zone in found],
        "zoneIds": [zone["ZoneId"] for zone in found],
    }


def _instances(clients: Clients, args: Properties) -> Properties:
    pages = clients.ec2.describe_instances(Filters=_filters(args))["Reservations"]
    found = [item for page in pages for item in page["Instances"]]
    return {
        "id": clients.region,
        "ids": [item["InstanceId"] for item in found],
        "privateIps": [item["PrivateIpAddress"] for item in found],
    }


def _instance(clients: Clients, args: Properties) -> Properties:
    page = clients.ec2.describe_instances(InstanceIds=[args["instanceId"]])["Reservations"][0]
    found = page["Instances"][0]
    return {"id": found["InstanceId"], "instanceId": found["InstanceId"], "instanceType": found["InstanceType"]}


def _subnets(clients: Clients, args: Properties) -> Properties:
    found = clients.ec2.describe_subnets(Filters=_filters(args))["Subnets"]
    return {"id": clients.region, "ids": [item["SubnetId"] for item in found]}


def _subnet(clients: Clients, args: Properties) -> Properties:
    found = clients.ec2.describe_subnets(SubnetIds=[args["id"]])["Subnets"][0]
    return {"id": found["SubnetId"], "availabilityZone": found["AvailabilityZone"], "vpcId": found["VpcId"]}


def _volume(clients: Clients, args: Properties) -> Properties:
    found = clients.ec2.describe_volumes(Filters=_filters(args))["Volumes"]
    if not found:
        raise LookupError("Your query returned no results. Please change your search criteria and try again.")
    id = found[0]["VolumeId"]
    return {"id": id, "volumeId": id, "availabilityZone": found[0]["AvailabilityZone"]}


def _vpcs(clients: Clients, args: Properties) -> Properties:
    found = clients.ec2.describe_vpcs(Filters=_filters(args))["Vpcs"]
    return {"id": clients.region, "ids": [item["VpcId"] for item in found]}


def _addresses(clients: Clients, args: Properties) -> Properties:
    found = clients.ec2.describe_addresses(Filters=_filters(args))["Addresses"]
    return {
        "id": clients.region,
        "allocationIds": [item["AllocationId"] for item in found],
        "publicIps": [item["PublicIp"] for item in found],
    }


def _parameter(clients: Clients, args: Properties) -> Properties:
    return {"id": args["name"], "name": args["name"], "value": PARAMETER_IMAGE, "version": 1}


def _quota(clients: Clients, args: Properties) -> Properties:
    return {"id": args["quotaCode"], "quotaCode": args["quotaCode"], "value": QUOTA}


def _spot_price(clients: Clients, args: Properties) -> Properties:
    return {"id": clients.region, "spotPrice": SPOT_PRICE, "instanceType": args["instanceType"]}


def _product(clients: Clients, args: Properties) -> Properties:
    rate = {"unit": "Hrs", "pricePerUnit": {"USD": ON_DEMAND_PRICE}}
    product = {"terms": {"OnDemand": {"A.B": {"priceDimensions": {"A.B.C": rate}}}}}
    return {"id": "0", "result": json.dumps(product)}


ANSWERS: dict[str, Callable[[Clients, Properties], Properties]] = {
    "aws:ebs/getVolume:getVolume": _volume,
    "aws:ec2/getAmi:getAmi": _image,
    "aws:ec2/getEips:getEips": _addresses,
    "aws:ec2/getInstance:getInstance": _instance,
    "aws:ec2/getInstances:getInstances": _instances,
    "aws:ec2/getInstanceTypeOfferings:getInstanceTypeOfferings": _offerings,
    "aws:ec2/getSpotPrice:getSpotPrice": _spot_price,
    "aws:ec2/getSubnet:getSubnet": _subnet,
    "aws:ec2/getSubnets:getSubnets": _subnets,
    "aws:ec2/getVpcs:getVpcs": _vpcs,
    "aws:index/getAvailabilityZones:getAvailabilityZones": _zones,
    "aws:pricing/getProduct:getProduct": _product,
    "aws:servicequotas/getServiceQuota:getServiceQuota": _quota,
    "aws:ssm/getParameter:getParameter": _parameter,
}
