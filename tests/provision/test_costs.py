"""What a deployment costs beside its machine, and what goes on costing without it."""

from __future__ import annotations

import pytest

from provision import catalog
from provision.costs import ALICLOUD_NAT_USD_PER_HOUR, estimate_cost, residual_items
from provision.spec import DeploymentSpec, parse

MODELS = {"aws": "s3://weights/7b", "alicloud": "oss://weights/7b"}


def spec_of(cloud: str, **values: object) -> DeploymentSpec:
    return parse({"cloud": cloud, "model": MODELS[cloud], **values})


@pytest.mark.parametrize(
    ("values", "stopped", "names"),
    [
        ({}, False, ["public address", "mailbox bucket"]),
        ({}, True, ["disk 100 GiB", "public address", "mailbox bucket"]),
        ({"weights_disk_gib": 50}, False, ["weights disk 50 GiB", "public address", "mailbox bucket"]),
        ({"endpoint": "intranet"}, False, ["NAT gateway", "mailbox bucket"]),
        ({"endpoint": "intranet", "egress": "none"}, False, ["mailbox bucket"]),
        ({"endpoint": "intranet", "vpc_id": "vpc-1"}, False, ["mailbox bucket"]),
    ],
)
def test_what_bills_without_the_machine_on_aws(values: dict[str, object], stopped: bool, names: list[str]) -> None:
    items = residual_items(spec_of("aws", **values), 100, stopped=stopped)
    assert [item.name for item in items] == names
    assert all(item.usd_per_hour for item in items)


def test_an_unused_address_costs_on_alibaba_cloud_and_a_used_one_does_not() -> None:
    spec = spec_of("alicloud")
    used = estimate_cost(spec, catalog.INSTANCE_TYPES["ecs.gn7i-c16g1.4xlarge"], 100).items[-1]
    unused = residual_items(spec, 100, stopped=False)[0]
    assert used.usd_per_hour == 0
    assert (unused.usd_per_hour or 0) > 0


def test_prices_outside_of_the_mainland_are_unknown_not_free() -> None:
    items = residual_items(spec_of("alicloud", region="ap-southeast-1", endpoint="intranet"), 100, stopped=True)
    assert [item.usd_per_hour for item in items[:-1]] == [None, None]


def test_a_nat_gateway_of_alibaba_cloud_is_priced_in_the_mainland() -> None:
    items = residual_items(spec_of("alicloud", endpoint="intranet"), 100, stopped=False)
    assert items[0].usd_per_hour == ALICLOUD_NAT_USD_PER_HOUR
