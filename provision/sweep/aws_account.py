"""One region of one AWS account as the sweep sees it: questions by tag, by name and by VPC."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from botocore.config import Config
from botocore.exceptions import ClientError

from provision.naming import TAG
from provision.sweep.aws_calls import NO_ANSWER, call
from provision.sweep.model import Argument, Leftover, Step

ATTEMPTS = 5
CONFIG = Config(retries={"mode": "standard", "total_max_attempts": ATTEMPTS}, connect_timeout=10, read_timeout=30)

Json = Mapping[str, Any]


class Account:
    """One region of one account as the probes see it, and the VPCs of the deployment in it."""

    def __init__(self, session: Any, region: str, name: str) -> None:
        self.region = region
        self.name = name
        self._session = session
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._vpc_ids: tuple[str, ...] | None = None

    def client(self, service: str) -> Any:
        # Creating clients is not thread-safe in boto3; using them is.
        with self._lock:
            if service not in self._clients:
                self._clients[service] = self._session.client(service, region_name=self.region, config=CONFIG)
            return self._clients[service]

    def ask(self, service: str, operation: str, key: str, arguments: Json | None = None) -> Iterator[Json]:
        """Items under `key` of every page. Raises ClientError and what is in NO_ANSWER."""
        client = self.client(service)
        given = dict(arguments or {})
        if client.can_paginate(operation):
            for page in client.get_paginator(operation).paginate(**given):
                yield from page.get(key, [])
        else:
            yield from getattr(client, operation)(**given).get(key, [])

    def ec2(self, operation: str, key: str, filters: Mapping[str, Iterable[str]]) -> Iterator[Json]:
        """Items that match all filters, or nothing where a filter has no value."""
        wanted = [{"Name": name, "Values": list(values)} for name, values in filters.items()]
        if all(item["Values"] for item in wanted):
            word = "Filter" if operation == "describe_nat_gateways" else "Filters"
            yield from self.ask("ec2", operation, key, {word: wanted})

    def tagged(self, operation: str, key: str) -> Iterator[Json]:
        """With our tag, which is looked at here too: what is found may be deleted."""
        for item in self.ec2(operation, key, {f"tag:{TAG}": [self.name]}):
            if tags_of(item).get(TAG) == self.name:
                yield item

    def in_vpc(self, operation: str, key: str, field: str = "vpc-id") -> Iterator[Json]:
        """With our tag, or inside a VPC of ours: tags of side effects may be missing."""
        yield from self.tagged(operation, key)
        yield from self.ec2(operation, key, {field: self.vpc_ids})

    @property
    def vpc_ids(self) -> tuple[str, ...]:
        """VPCs of the deployment; none where they cannot be asked for, which the probe of VPCs then reports."""
        if self._vpc_ids is None:
            try:
                self._vpc_ids = tuple(item["VpcId"] for item in self.tagged("describe_vpcs", "Vpcs"))
            except (ClientError, *NO_ANSWER):
                self._vpc_ids = ()
        return self._vpc_ids

    def leftover(
        self, kind: str, id_: str, price: float | None, steps: Iterable[Step], *, going: bool = False
    ) -> Leftover:
        return Leftover(kind, id_, self.region, price, tuple(steps), going)

    def step(self, operation: str, *arguments: tuple[str, Argument], then: str = "") -> Step:
        return call("ec2", operation, arguments, self.region, then=then)


@dataclass(frozen=True, slots=True)
class Probe:
    """One question. `permission` is what the question needs, in IAM's words."""

    kind: str
    permission: str
    find: Callable[[Account], Iterator[Leftover]]


def tags_of(item: Json) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in item.get("Tags") or item.get("TagSet") or []}
