"""The sweep on Alibaba Cloud against a local server that speaks its RPC APIs: every kind is found and deleted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from provision.catalog import INSTANCE_TYPES
from provision.errors import MissingPartError
from provision.naming import TAG, WEIGHTS_TAG, bucket_prefix, resource_name
from provision.sweep import Sweep, Unknown, delete_leftovers, describe, find_leftovers
from provision.sweep.alicloud import AlicloudSearch
from provision.sweep.alicloud_client import ATTEMPTS, AlicloudClient, endpoint_of
from provision.sweep.find import open_search
from tests.lab.alicloud_api import AlicloudApi

NAME = "llm"
REGION = "cn-hangzhou"
KINDS = AlicloudSearch.kinds
TYPE = "ecs.gn7i-c8g1.2xlarge"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[AlicloudApi]:
    with AlicloudApi() as api:
        for name, value in api.environment.items():
            monkeypatch.setenv(name, value)
        yield api


@dataclass(frozen=True)
class Garden:
    """Plants one resource of a kind, tagged for deployment `name`, on ground that belongs to nobody."""

    api: AlicloudApi
    name: str = NAME

    def plant(self, kind: str) -> str:
        """The id, as the sweep reports it."""
        tags, api, id_ = {TAG: self.name}, self.api, f"{kind.replace(' ', '-')}-of-{self.name}"
        if kind == "bucket":
            bucket = bucket_prefix(self.name) + "0a1b2c3d"
            api.buckets[bucket] = ["release/current.json", "status/status.json"]
            api.uploads[bucket] = ["release/r0/cut-off.whl"]
            return bucket
        if kind == "SNAT entry":
            api.add(
                "DescribeNatGateways", NatGatewayId="theirs", VpcId="vpc-theirs", SnatTableIds={"SnatTableId": ["t"]}
            )
            name = resource_name(self.name, "nat")
            return api.add("DescribeSnatTableEntries", SnatEntryId=id_, SnatTableId="t", SnatEntryName=name)
        if kind == "RAM role":
            api.attached[resource_name(self.name, "role")] = ["some-policy"]
        if kind == "elastic IP":
            api.associated.add(id_)
        planters: dict[str, Callable[[], str]] = {
            "instance": lambda: api.add("DescribeInstances", tags, InstanceId=id_, InstanceType=TYPE, Status="Running"),
            "NAT gateway": lambda: api.add(
                "DescribeNatGateways",
                tags,
                NatGatewayId=id_,
                VpcId="vpc-theirs",
                Status="Available",
                SnatTableIds={"SnatTableId": []},
            ),
            "elastic IP": lambda: api.add(
                "DescribeEipAddresses", tags, AllocationId=id_, Status="InUse", InstanceId="i-theirs"
            ),
            "disk": lambda: api.add("DescribeDisks", tags, DiskId=id_),
            "snapshot": lambda: api.add("DescribeSnapshots", tags, SnapshotId=id_),
            "network interface": lambda: api.add(
                "DescribeNetworkInterfaces", tags, NetworkInterfaceId=id_, Status="Available", Type="Secondary"
            ),
            "key pair": lambda: api.add("DescribeKeyPairs", tags, KeyPairName=resource_name(self.name, "key")),
            "security group": lambda: api.add("DescribeSecurityGroups", tags, SecurityGroupId=id_),
            "vswitch": lambda: api.add("DescribeVSwitches", tags, VSwitchId=id_),
            "VPC": lambda: api.add("DescribeVpcs", tags, VpcId=id_),
            "RAM role": lambda: api.add("ListRoles", tags, RoleName=resource_name(self.name, "role")),
            "RAM policy": lambda: api.add("ListPolicies", tags, PolicyName=resource_name(self.name, "policy")),
        }
        return planters[kind]()


def sweep(**options: bool) -> Sweep:
    return find_leftovers("alicloud", REGION, NAME, **options)


def test_an_account_without_the_deployment_has_nothing_left(api: AlicloudApi) -> None:
    found = sweep()
    assert found.is_clean
    assert describe(found) == "0 resources left, $0.00/h"


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_orphan_is_found_and_deleted(api: AlicloudApi, kind: str) -> None:
    planted = Garden(api).plant(kind)
    search = open_search("alicloud", REGION, NAME)
    found = search.ask(kind)
    assert not isinstance(found, Unknown)
    assert [(item.kind, item.id) for item in found] == [(kind, planted)]
    assert [search.delete(item) for item in found] == [None]
    assert search.ask(kind) == ()


def test_orphans_of_all_kinds_are_found_in_the_order_of_deletion(api: AlicloudApi) -> None:
    for kind in KINDS:
        Garden(api).plant(kind)
    found = sweep()
    assert tuple(item.kind for item in found.found) == KINDS
    assert delete_leftovers(found) == {}
    assert sweep().is_clean


def test_orphans_of_another_deployment_whose_name_begins_alike_are_not_ours(api: AlicloudApi) -> None:
    for kind in KINDS:
        Garden(api, f"{NAME}-2").plant(kind)
    assert sweep().found == ()


def test_untagged_things_inside_our_vpc_are_found(api: AlicloudApi) -> None:
    ours = Garden(api).plant("VPC")
    vswitch = api.add("DescribeVSwitches", VSwitchId="vsw-1", VpcId=ours)
    group = api.add("DescribeSecurityGroups", SecurityGroupId="sg-1", VpcId=ours)
    assert [item.id for item in sweep().found] == [group, vswitch, ours]


def test_every_page_is_read(api: AlicloudApi) -> None:
    for number in range(120):
        api.add("DescribeDisks", {TAG: NAME}, DiskId=f"d-{number:03}")
        api.add("ListRoles", RoleName=f"somebody-elses-{number:03}")
    last = api.add("ListRoles", RoleName=resource_name(NAME, "role"))
    found = [item.id for item in sweep().found]
    assert len(found) == 121
    assert last in found


def test_a_throttled_question_is_asked_again(api: AlicloudApi) -> None:
    disk = Garden(api).plant("disk")
    api.busy["DescribeDisks"] = ATTEMPTS - 1
    pauses: list[float] = []
    found = AlicloudSearch(REGION, NAME, pause=pauses.append).ask("disk")
    assert not isinstance(found, Unknown)
    assert [item.id for item in found] == [disk]
    assert pauses == sorted(pauses)


def test_a_question_that_stays_throttled_is_unknown(api: AlicloudApi) -> None:
    Garden(api).plant("disk")
    api.busy["DescribeDisks"] = ATTEMPTS
    answer = AlicloudSearch(REGION, NAME, pause=lambda _seconds: None).ask("disk")
    assert isinstance(answer, Unknown)
    assert "Throttling.User" in answer.reason
    assert f"{ATTEMPTS} tries" in answer.reason


def test_a_refusal_is_unknown_and_names_the_missing_permission(api: AlicloudApi) -> None:
    api.refusals = {
        "DescribeDisks": (403, "Forbidden.RAM"),
        "ListRoles": (403, "NoPermission"),
        "oss": (403, "AccessDenied"),
    }
    answer = sweep()
    assert {item.kind: item.permission for item in answer.unknown} == {
        "disk": "ecs:DescribeDisks",
        "RAM role": "ram:ListRoles",
        "bucket": "oss:ListBuckets",
    }
    assert not answer.is_clean
    assert "disk: not allowed: the credentials lack ecs:DescribeDisks (Forbidden.RAM)" in describe(answer)


def test_without_credentials_everything_is_unknown(api: AlicloudApi) -> None:
    api.refusals = {"*": (404, "InvalidAccessKeyId.NotFound"), "oss": (403, "InvalidAccessKeyId")}
    assert {item.kind for item in sweep().unknown} == set(KINDS)


def test_an_answer_that_is_not_as_documented_is_unknown(api: AlicloudApi) -> None:
    api.add("DescribeInstances", {TAG: NAME}, InstanceId="i-1")
    (unknown,) = sweep().unknown
    assert (unknown.kind, unknown.reason) == ("instance", "the answer is not as documented (KeyError('Status'))")


def test_an_api_that_cannot_be_reached_is_unknown(api: AlicloudApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPC_ENDPOINT", "http://127.0.0.1:1")
    answer = AlicloudSearch(REGION, NAME, pause=lambda _seconds: None).ask("VPC")
    assert isinstance(answer, Unknown)


def plant_a_gateway_that_goes(api: AlicloudApi) -> None:
    fields = {"NatGatewayId": "ngw-1", "VpcId": "vpc-theirs", "Status": "Deleting", "SnatTableIds": {"SnatTableId": []}}
    api.add("DescribeNatGateways", {TAG: NAME}, **fields)


def test_with_patience_the_sweep_waits_for_what_the_cloud_is_deleting(api: AlicloudApi) -> None:
    plant_a_gateway_that_goes(api)
    vswitch = Garden(api).plant("vswitch")

    def finish(_seconds: float) -> None:
        api.items["DescribeNatGateways"].clear()

    found = find_leftovers("alicloud", REGION, NAME, patience_s=60, pause=finish)
    assert [item.id for item in found.found] == [vswitch]


def test_patience_ends(api: AlicloudApi) -> None:
    plant_a_gateway_that_goes(api)
    pauses: list[float] = []
    found = find_leftovers("alicloud", REGION, NAME, patience_s=12, pause=pauses.append)
    assert [item.going for item in found.found] == [True]
    assert 0 < sum(pauses) <= 12


def test_what_the_cloud_is_deleting_is_not_deleted_again(api: AlicloudApi) -> None:
    plant_a_gateway_that_goes(api)
    assert delete_leftovers(sweep()) == {}
    assert len(sweep().found) == 1


def test_an_instance_has_the_catalogs_price(api: AlicloudApi) -> None:
    Garden(api).plant("instance")
    price = INSTANCE_TYPES[TYPE].price
    assert price is not None
    assert sweep().usd_per_hour == price.usd_per_hour


def test_an_instance_in_economical_mode_costs_nothing_itself(api: AlicloudApi) -> None:
    fields = {"InstanceId": "i-1", "InstanceType": TYPE, "Status": "Stopped", "StoppedMode": "StopCharging"}
    api.add("DescribeInstances", {TAG: NAME}, **fields)
    assert [item.usd_per_hour for item in sweep().found] == [0.0]


def test_a_spot_instances_price_is_unknown(api: AlicloudApi) -> None:
    fields = {"InstanceId": "i-1", "InstanceType": TYPE, "Status": "Running", "SpotStrategy": "SpotAsPriceGo"}
    api.add("DescribeInstances", {TAG: NAME}, **fields)
    assert sweep().usd_per_hour is None


def test_a_kept_disk_of_weights_is_no_leftover(api: AlicloudApi) -> None:
    disk = api.add("DescribeDisks", {WEIGHTS_TAG: NAME}, DiskId="d-weights")
    assert [item.id for item in sweep().found] == [disk]
    kept = sweep(keep_weights=True)
    assert kept.is_clean
    assert [item.id for item in kept.kept] == [disk]


def test_the_delete_commands_call_the_api_by_its_own_names(api: AlicloudApi) -> None:
    Garden(api).plant("elastic IP")
    assert [item.delete_command for item in sweep().found] == [
        "aliyun vpc UnassociateEipAddress --RegionId cn-hangzhou --AllocationId elastic-IP-of-llm --Force true"
        " && aliyun vpc ReleaseEipAddress --RegionId cn-hangzhou --AllocationId elastic-IP-of-llm"
    ]


def test_requests_are_signed_and_name_their_region(api: AlicloudApi) -> None:
    AlicloudClient(REGION, api.environment).call("ecs", "DescribeDisks", {})
    assert api.calls == [("ecs", "DescribeDisks")]


@pytest.mark.parametrize(
    ("product", "region", "url"),
    [
        ("ecs", "cn-hangzhou", "https://ecs-cn-hangzhou.aliyuncs.com"),
        ("ecs", "ap-southeast-1", "https://ecs.ap-southeast-1.aliyuncs.com"),
        ("vpc", "cn-beijing", "https://vpc.cn-beijing.aliyuncs.com"),
        ("ram", "cn-beijing", "https://ram.aliyuncs.com"),
    ],
)
def test_an_api_is_asked_where_it_is(product: str, region: str, url: str) -> None:
    assert endpoint_of(product, region, {}) == url  # type: ignore[arg-type]


def test_without_the_sdk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("provision.sweep.alicloud", "provision.sweep.alicloud_client", "runtime.alicloud_api"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "alibabacloud_tea_openapi.client", None)
    with pytest.raises(MissingPartError) as caught:
        open_search("alicloud", REGION, NAME)
    assert caught.value.next_command == "pip install 'deployctl[alicloud]'"
