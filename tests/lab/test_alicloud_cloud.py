"""What the account in memory refuses, as the real one does."""

from __future__ import annotations

import pytest

from tests.lab.alicloud_cloud import IMAGE, AlicloudCloud, Refused

NETWORK, SWITCH, INSTANCE = "vpc/network:Network", "vpc/switch:Switch", "ecs/instance:Instance"
ADDRESS, BOUND = "ecs/eipAddress:EipAddress", "ecs/eipAssociation:EipAssociation"


@pytest.fixture
def cloud() -> AlicloudCloud:
    return AlicloudCloud()


@pytest.fixture
def switch(cloud: AlicloudCloud) -> str:
    vpc = cloud.create(NETWORK, "n", {"cidrBlock": "10.42.0.0/16"}).id
    given = {"vpcId": vpc, "cidrBlock": "10.42.1.0/24", "zoneId": "cn-hangzhou-b", "tags": {"deployctl": "bot"}}
    return cloud.create(SWITCH, "s", given).id


def machine(switch: str, **values: object) -> dict[str, object]:
    return {
        "instanceType": "ecs.gn7i-c16g1.4xlarge",
        "vswitchId": switch,
        "imageId": IMAGE,
        "privateIp": "10.42.1.10",
        "systemDiskCategory": "cloud_essd",
        "systemDiskSize": 100,
        "internetMaxBandwidthOut": 0,
        **values,
    }


def test_a_vswitch_with_a_machine_cannot_be_deleted(cloud: AlicloudCloud, switch: str) -> None:
    made = cloud.create(INSTANCE, "m", machine(switch))
    with pytest.raises(Refused, match=r"DependencyViolation.*i-bp1"):
        cloud.delete(SWITCH, switch)
    cloud.delete(INSTANCE, made.id)
    cloud.delete(SWITCH, switch)
    assert not cloud.find("Switch")


def test_an_address_that_is_bound_cannot_be_released_and_is_free_when_its_machine_is_gone(
    cloud: AlicloudCloud, switch: str
) -> None:
    made = cloud.create(INSTANCE, "m", machine(switch))
    address = cloud.create(ADDRESS, "a", {}).id
    cloud.create(BOUND, "b", {"allocationId": address, "instanceId": made.id})
    with pytest.raises(Refused, match="DependencyViolation"):
        cloud.delete(ADDRESS, address)
    cloud.delete(INSTANCE, made.id)
    cloud.delete(ADDRESS, address)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"systemDiskCategory": "cloud_efficiency"}, "InvalidSystemDiskCategory"),
        ({"privateIp": "10.42.9.10"}, "InvalidPrivateIpAddress"),
        ({"imageId": "gone.vhd"}, "InvalidImageId"),
        ({"autoReleaseTime": "2020-01-01T00:00:00Z"}, "InvalidAutoReleaseTime"),
    ],
)
def test_a_machine_that_the_cloud_would_not_make(
    cloud: AlicloudCloud, switch: str, values: dict[str, object], code: str
) -> None:
    with pytest.raises(Refused) as refused:
        cloud.create(INSTANCE, "m", machine(switch, **values))
    assert refused.value.code.startswith(code)


def test_two_machines_cannot_have_one_address(cloud: AlicloudCloud, switch: str) -> None:
    cloud.create(INSTANCE, "m", machine(switch))
    with pytest.raises(Refused, match="Duplicated"):
        cloud.create(INSTANCE, "n", machine(switch))


def test_things_are_found_by_tag_and_by_name(cloud: AlicloudCloud, switch: str) -> None:
    cloud.plant("ram/role:Role", {"roleName": "deployctl-bot-role"})
    assert [item.id for item in cloud.find(tags={"deployctl": "bot"})] == [switch]
    assert [item.id for item in cloud.named("deployctl-bot-")] == ["deployctl-bot-role"]
