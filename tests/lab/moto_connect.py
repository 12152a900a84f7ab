"""EC2 Instance Connect Endpoints for moto, which has none: make, describe by tag or VPC, delete."""

from __future__ import annotations

import secrets
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.responses import EC2Response


def _endpoints(response: EC2Response) -> dict[str, dict[str, Any]]:
    """The endpoints of one account and region, kept beside moto's own resources."""
    backend: Any = response.ec2_backend
    if not hasattr(backend, "connect_endpoints"):
        backend.connect_endpoints = {}
    found: dict[str, dict[str, Any]] = backend.connect_endpoints
    return found


def create_instance_connect_endpoint(self: EC2Response) -> ActionResult:
    subnet = self.ec2_backend.get_subnet(self._get_param("SubnetId"))
    made = {
        "InstanceConnectEndpointId": f"eice-{secrets.token_hex(8)}",
        "SubnetId": subnet.id,
        "VpcId": subnet.vpc_id,
        "State": "create-complete",
        "SecurityGroupIds": self._get_param("SecurityGroupIds", []),
        "Tags": [tag for item in self._get_param("TagSpecifications", []) for tag in item["Tags"]],
    }
    _endpoints(self)[made["InstanceConnectEndpointId"]] = made
    return ActionResult({"InstanceConnectEndpoint": made})


def describe_instance_connect_endpoints(self: EC2Response) -> ActionResult:
    filters = {item["Name"]: item["Values"] for item in self._get_param("Filters", [])}
    wanted = self._get_param("InstanceConnectEndpointIds", [])
    found = [
        item
        for item in _endpoints(self).values()
        if all(_values(item, name) & set(values) for name, values in filters.items())
        and (not wanted or item["InstanceConnectEndpointId"] in wanted)
    ]
    return ActionResult({"InstanceConnectEndpoints": found})


def delete_instance_connect_endpoint(self: EC2Response) -> ActionResult:
    gone = _endpoints(self).pop(self._get_param("InstanceConnectEndpointId"))
    return ActionResult({"InstanceConnectEndpoint": {**gone, "State": "delete-in-progress"}})


def _values(item: dict[str, Any], name: str) -> set[str]:
    if name.startswith("tag:"):
        return {tag["Value"] for tag in item["Tags"] if tag["Key"] == name.removeprefix("tag:")}
    return {item[{"vpc-id": "VpcId", "subnet-id": "SubnetId"}[name]]}


def install() -> None:
    """Teaches the moto of this process."""
    for action in (
        create_instance_connect_endpoint,
        describe_instance_connect_endpoints,
        delete_instance_connect_endpoint,
    ):
        setattr(EC2Response, action.__name__, action)
