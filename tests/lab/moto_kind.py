"""What the test engine's AWS is made of: the API clients, and one `Kind` per resource type. Helpers for tags."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import boto3

from tests.lab.pulumi_model import Created
from tests.lab.pulumi_wire import Properties

SERVICES = ("ec2", "iam", "s3", "scheduler")


class Clients:
    """boto3 clients of one account and region; `endpoint` is a moto server's URL, None inside `mock_aws`."""

    def __init__(self, region: str, endpoint: str | None = None) -> None:
        self.region = region
        made = {name: boto3.client(name, region_name=region, endpoint_url=endpoint) for name in SERVICES}
        self.ec2: Any = made["ec2"]
        self.iam: Any = made["iam"]
        self.s3: Any = made["s3"]
        self.scheduler: Any = made["scheduler"]
        self._sts: Any = boto3.client("sts", region_name=region, endpoint_url=endpoint)

    @cached_property
    def account(self) -> str:
        found: str = self._sts.get_caller_identity()["Account"]
        return found

    def arn(self, kind: str, id: str) -> str:
        return f"arn:aws:ec2:{self.region}:{self.account}:{kind}/{id}"


Make = Callable[[Clients, Properties], Created]
Change = Callable[[Clients, str, Properties], Properties]
Drop = Callable[[Clients, str, Properties], None]


@dataclass(frozen=True, slots=True)
class Kind:
    """How one resource type lives. `make` gets the inputs with all tags as `tagsAll`; `change` returns new outputs;
    `fixed` are the inputs whose change needs a new resource."""

    make: Make
    drop: Drop
    change: Change | None = None
    fixed: frozenset[str] = frozenset()


def nothing(clients: Clients, id: str, outputs: Properties) -> None:
    """Goes with what it belongs to."""


def tag_list(inputs: Properties) -> list[dict[str, str]]:
    tags: Mapping[str, str] = inputs.get("tagsAll", {})
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def tagged(kind: str, inputs: Properties) -> list[dict[str, Any]]:
    """`TagSpecifications` of an EC2 call."""
    tags = tag_list(inputs)
    return [{"ResourceType": kind, "Tags": tags}] if tags else []


def given(**values: Any) -> dict[str, Any]:
    """Arguments without those that are None: boto3 takes no None."""
    return {name: value for name, value in values.items() if value is not None}
