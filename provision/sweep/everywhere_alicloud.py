"""The search by tag in the catalog's regions of an Alibaba Cloud account.

Tried against the lab's server of its RPC APIs; not yet run on a real cloud.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime

from provision.catalog import REGIONS
from provision.costs import (
    ALICLOUD_DISK_USD_PER_GIB_HOUR,
    ALICLOUD_IDLE_ADDRESS_USD_PER_HOUR,
    ALICLOUD_NAT_USD_PER_HOUR,
)
from provision.naming import TAG, WEIGHTS_TAG
from provision.sweep.alicloud import instance_price, reason_of, tags_of
from provision.sweep.alicloud_client import AlicloudClient, ApiError, Json, Product
from provision.sweep.everywhere import MACHINE, CannotSearchError, End, Question, Tagged, name_in
from provision.sweep.model import Unknown
from runtime.alicloud_credentials import CredentialsError

HOME_REGION = "cn-hangzhou"


class AlicloudTagSearch:
    """provision.sweep.everywhere.TagSearch for Alibaba Cloud. `pause` waits the given seconds between tries."""

    def __init__(self, env: Mapping[str, str], pause: Callable[[float], None] = time.sleep) -> None:
        self._questions = {question.kind: question for question in QUESTIONS}
        self._clients = {region: AlicloudClient(region, env, pause) for region in REGIONS["alicloud"]}

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self._questions)

    def regions(self) -> tuple[str, ...]:
        """Those of the catalog. Raises CannotSearchError without credentials."""
        try:
            self._clients[HOME_REGION].keys.find()
        except CredentialsError as error:
            raise CannotSearchError(str(error)) from None
        return tuple(self._clients)

    def ask(self, region: str, kind: str) -> tuple[Tagged, ...] | Unknown:
        question = self._questions[kind]
        try:
            return tuple(question.find(self._clients[region]))
        except ApiError as error:
            permission = error.permission or question.permission
            return Unknown(kind, reason_of(error, permission), permission)
        except (KeyError, TypeError, ValueError) as error:
            # No answer of this API has been seen on a real account yet.
            return Unknown(kind, f"the answer is not as documented ({error!r})", question.permission)


def _machines(api: AlicloudClient) -> Iterator[Tagged]:
    for item in _tagged(api, "ecs", "DescribeInstances", ("Instances", "Instance")):
        yield Tagged(
            "alicloud",
            api.region,
            name_in(tags_of(item)),
            MACHINE,
            item["InstanceId"],
            instance_price(item),
            state=item["Status"].lower(),
            instance_type=item["InstanceType"],
            made_at=_seconds(item.get("CreationTime")),
            ends=_end(item.get("AutoReleaseTime")),
        )


def _addresses(api: AlicloudClient) -> Iterator[Tagged]:
    """One bound to a machine has no fee but its traffic."""
    for item in _tagged(api, "vpc", "DescribeEipAddresses", ("EipAddresses", "EipAddress")):
        price = 0.0 if item.get("InstanceId") else _in_mainland(api, ALICLOUD_IDLE_ADDRESS_USD_PER_HOUR)
        yield _thing(api, item, "elastic IP", item["AllocationId"], price)


def _gateways(api: AlicloudClient) -> Iterator[Tagged]:
    for item in _tagged(api, "vpc", "DescribeNatGateways", ("NatGateways", "NatGateway")):
        if item["Status"] != "Deleting":
            price = _in_mainland(api, ALICLOUD_NAT_USD_PER_HOUR)
            yield _thing(api, item, "NAT gateway", item["NatGatewayId"], price)


def _disks(api: AlicloudClient) -> Iterator[Tagged]:
    found = {
        item["DiskId"]: item
        for tag in (TAG, WEIGHTS_TAG)
        for item in _tagged(api, "ecs", "DescribeDisks", ("Disks", "Disk"), tag)
    }
    for id_, item in found.items():
        rate, size = ALICLOUD_DISK_USD_PER_GIB_HOUR.get(item.get("Category", "")), item.get("Size")
        price = None if rate is None or size is None else _in_mainland(api, rate * int(size))
        yield _thing(api, item, "disk", id_, price)


def _snapshots(api: AlicloudClient) -> Iterator[Tagged]:
    for item in _tagged(api, "ecs", "DescribeSnapshots", ("Snapshots", "Snapshot")):
        yield _thing(api, item, "snapshot", item["SnapshotId"], None)


def _thing(api: AlicloudClient, item: Json, kind: str, id_: str, price: float | None) -> Tagged:
    return Tagged("alicloud", api.region, name_in(tags_of(item)), kind, id_, price)


def _tagged(
    api: AlicloudClient, product: Product, action: str, path: tuple[str, str], tag: str = TAG
) -> Iterator[Json]:
    """Every value of the tag; it is looked at here too."""
    for item in api.items(product, action, path, {"Tag.1.Key": tag}):
        if tag in tags_of(item):
            yield item


def _in_mainland(api: AlicloudClient, usd: float) -> float | None:
    """The list prices that are known are those of mainland China."""
    return usd if api.region.startswith("cn-") and api.region != "cn-hongkong" else None


def _end(text: str | None) -> End:
    at = _seconds(text)
    return "never" if at is None else int(at)


def _seconds(text: str | None) -> float | None:
    """ "2026-11-22T08:00Z" in seconds since the epoch. Raises ValueError."""
    return datetime.fromisoformat(text).astimezone(UTC).timestamp() if text else None


QUESTIONS: tuple[Question[AlicloudClient], ...] = (
    Question(MACHINE, "ecs:DescribeInstances", _machines),
    Question("elastic IP", "vpc:DescribeEipAddresses", _addresses),
    Question("NAT gateway", "vpc:DescribeNatGateways", _gateways),
    Question("disk", "ecs:DescribeDisks", _disks),
    Question("snapshot", "ecs:DescribeSnapshots", _snapshots),
)
