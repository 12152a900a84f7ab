"""`ps --everywhere`: what bears our tag is found in every region, and nothing unanswered counts as nothing there."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws
from typer.testing import CliRunner

from provision.catalog import INSTANCE_TYPES, REGIONS
from provision.cli import ps as ps_command
from provision.naming import TAG, WEIGHTS_TAG, resource_name
from provision.sweep.everywhere import Everywhere, Tagged, Unasked, orphans, search_everywhere
from provision.sweep.everywhere_aws import AwsTagSearch
from provision.target import Observation
from runtime.alicloud_credentials import KeyChain
from tests.lab.alicloud_api import AlicloudApi

TYPE, PRICE = "ecs.gn7i-c8g1.2xlarge", INSTANCE_TYPES["ecs.gn7i-c8g1.2xlarge"].price
MOTO_IMAGE = "ami-12c6146b"
HERE, THERE = "eu-west-1", "us-east-2"
MACHINE = Tagged("aws", HERE, "llm", "instance", "i-1", 1.0, "running", "g5.xlarge", 100.0, 200)


def test_a_machine_of_a_known_stack_is_no_orphan_and_the_same_name_in_another_region_is() -> None:
    known = Observation("llm", "aws", "ready", region=HERE)
    elsewhere = Tagged("aws", THERE, "llm", "instance", "i-2", None, "running", "g5.xlarge", 100.0, "unknown")
    found = orphans([MACHINE, elsewhere], lambda *where: ps_command.owns([known], *where))
    assert [(item.region, item.name) for item in found] == [(THERE, "llm")]


def test_a_stack_that_cannot_say_where_it_is_owns_its_name_everywhere() -> None:
    assert ps_command.owns([Observation("llm", "cloud", "failed")], "alicloud", "cn-hangzhou", "llm")


def test_a_local_deployment_owns_nothing_in_a_cloud() -> None:
    assert not ps_command.owns([Observation("llm", "local", "ready")], "aws", HERE, "llm")


def test_all_of_one_name_and_region_is_one_orphan_with_the_command_that_ends_it() -> None:
    address = Tagged("aws", HERE, "llm", "elastic IP", "eip-1", 0.005)
    snapshot = Tagged("aws", HERE, "llm", "snapshot", "snap-1", None)
    (orphan,) = orphans([snapshot, MACHINE, address], lambda *_: False)
    assert orphan.usd_per_hour == pytest.approx(1.005)
    assert orphan.unpriced == ("snapshot",)
    assert (orphan.state, orphan.instance_type, orphan.ends) == ("running", "g5.xlarge", 200)
    assert orphan.next_command == f"deployctl down llm --cloud aws --region {HERE}"
    assert "$1.005/h and more" in ps_command.orphan_row(orphan, now=150.0)
    assert ps_command.orphan_row(orphan, now=150.0)[-1] == "50 s"


def test_questions_without_an_answer_forbid_saying_that_there_are_no_orphans() -> None:
    silent = Everywhere(2, (), (Unasked("aws", HERE, "instance", "throttled"),))
    assert ps_command.orphan_text((), silent, 0.0, sure=True).endswith("as far as they could be asked")
    assert ps_command.unasked_lines(silent.unasked) == [f"not searched: aws {HERE} (instance): throttled"]


def test_without_a_single_region_nothing_is_said_about_orphans() -> None:
    assert ps_command.orphan_text((), Everywhere(0, (), ()), 0.0, sure=True) == "no cloud could be searched"


def test_a_reason_of_many_lines_is_told_in_one() -> None:
    silent = [Unasked("alicloud", None, None, "no credentials\nsee the manual")]
    assert ps_command.unasked_lines(silent) == ["not searched: alicloud: no credentials"]


def test_an_orphan_is_not_called_one_while_a_stack_cannot_be_read() -> None:
    strays = orphans([MACHINE], lambda *_: False)
    text = ps_command.orphan_text(strays, Everywhere(1, (MACHINE,), ()), 150.0, sure=False)
    assert text.startswith("unknown whose these are")


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)


class TwoRegions(AwsTagSearch):
    """The real search, in two of moto's regions: all of them take a minute here."""

    def regions(self) -> tuple[str, ...]:
        assert {HERE, THERE} <= set(super().regions())
        return (HERE, THERE)


@pytest.fixture(scope="module")
def session() -> boto3.Session:
    """One for all: reading the models of the APIs takes a second."""
    return boto3.Session("testing", "testing")


@pytest.fixture
def aws(keys: None, session: boto3.Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[boto3.Session]:
    monkeypatch.setattr("provision.sweep.everywhere_aws.AwsTagSearch", lambda: TwoRegions(session))
    with mock_aws():
        yield session


def plant_machine(session: Any, region: str, name: str) -> str:
    ec2 = session.client("ec2", region_name=region)
    tags = [{"ResourceType": "instance", "Tags": [{"Key": TAG, "Value": name}]}]
    made = ec2.run_instances(
        ImageId=MOTO_IMAGE, MinCount=1, MaxCount=1, InstanceType="g5.xlarge", TagSpecifications=tags
    )
    found: str = made["Instances"][0]["InstanceId"]
    return found


def test_machines_of_all_aws_regions_are_found_with_price_age_and_the_end_that_their_timer_sets(
    aws: boto3.Session,
) -> None:
    here, there = plant_machine(aws, HERE, "llm"), plant_machine(aws, THERE, "old")
    plant_machine(aws, THERE, "gone")
    ec2 = aws.client("ec2", region_name=THERE)
    ec2.stop_instances(InstanceIds=[there])
    timer = resource_name("llm", "ttl")
    scheduler = aws.client("scheduler", region_name=HERE)
    scheduler.create_schedule_group(Name=timer)
    scheduler.create_schedule(
        Name=timer,
        GroupName=timer,
        ScheduleExpression="at(2030-01-01T00:00:00)",
        FlexibleTimeWindow={"Mode": "OFF"},
        Target={"Arn": "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances", "RoleArn": "arn:aws:iam::1:role/x"},
    )
    answer = search_everywhere(["aws"], {})
    assert (answer.regions, answer.unasked) == (2, ())
    found = {item.name: item for item in orphans(answer.found, lambda *where: where[2] == "gone")}
    assert set(found) == {"llm", "old"}
    price = INSTANCE_TYPES["g5.xlarge"].price
    assert price is not None
    assert (found["llm"].state, found["llm"].usd_per_hour) == ("running", price.usd_per_hour)
    assert (found["old"].state, found["old"].usd_per_hour, found["old"].ends) == ("stopped", 0.0, "never")
    assert found["llm"].ends == int(datetime(2030, 1, 1, tzinfo=UTC).timestamp())
    assert found["llm"].resources == (f"instance {here}",)
    assert found["llm"].made_at == pytest.approx(time.time(), abs=120)


def test_what_bills_without_a_machine_is_one_line_per_name_and_region(aws: boto3.Session) -> None:
    ec2 = aws.client("ec2", region_name=THERE)
    for kind, tag in (("elastic-ip", TAG), ("volume", WEIGHTS_TAG)):
        tags = [{"ResourceType": kind, "Tags": [{"Key": tag, "Value": "rest"}]}]
        if kind == "volume":
            zone = f"{THERE}a"
            ec2.create_volume(AvailabilityZone=zone, Size=100, VolumeType="gp3", TagSpecifications=tags)
        else:
            ec2.allocate_address(Domain="vpc", TagSpecifications=tags)
    (orphan,) = orphans(search_everywhere(["aws"], {}).found, lambda *_: False)
    assert (orphan.name, orphan.region, orphan.state) == ("rest", THERE, "no machine")
    assert [item.rpartition(" ")[0] for item in orphan.resources] == ["elastic IP", "volume"]
    assert orphan.usd_per_hour == pytest.approx(0.005 + 100 * 0.08 / 730)


def test_without_credentials_a_cloud_is_not_searched_and_that_is_no_error(
    keys: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = partial(KeyChain, home=tmp_path, metadata_url="http://127.0.0.1:9")
    monkeypatch.setattr("provision.sweep.alicloud_client.KeyChain", nowhere)
    answer = search_everywhere(["aws", "alicloud"], {})
    assert [(item.cloud, item.region) for item in answer.unasked] == [("aws", None), ("alicloud", None)]
    assert answer.regions == 0


def test_a_missing_sdk_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.delitem(sys.modules, "provision.sweep.everywhere_aws", raising=False)
    (unasked,) = search_everywhere(["aws"], {}).unasked
    assert unasked.reason == "boto3 is not installed: pip install 'deployctl[aws]'"


@pytest.fixture
def alicloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[AlicloudApi]:
    monkeypatch.setitem(REGIONS, "alicloud", ("cn-hangzhou", "cn-shanghai", "eu-central-1"))  # 27 take seconds here
    with AlicloudApi() as api:
        yield api


def test_machines_of_alibaba_cloud_are_found_with_their_release_time(alicloud: AlicloudApi) -> None:
    end = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(hours=3)
    made = end - timedelta(hours=5)
    alicloud.add(
        "DescribeInstances",
        {TAG: "llm"},
        InstanceId="i-1",
        InstanceType=TYPE,
        Status="Running",
        RegionId="cn-shanghai",
        CreationTime=f"{made:%Y-%m-%dT%H:%MZ}",
        AutoReleaseTime=f"{end:%Y-%m-%dT%H:%MZ}",
    )
    alicloud.add("DescribeInstances", {"theirs": "x"}, InstanceId="i-2", InstanceType=TYPE, Status="Running")
    answer = search_everywhere(["alicloud"], alicloud.environment)
    assert (answer.regions, answer.unasked) == (3, ())
    (orphan,) = orphans(answer.found, lambda *_: False)
    assert (orphan.region, orphan.name, orphan.state, orphan.instance_type) == ("cn-shanghai", "llm", "running", TYPE)
    assert (orphan.made_at, orphan.ends) == (made.timestamp(), int(end.timestamp()))
    assert PRICE is not None
    assert orphan.usd_per_hour == PRICE.usd_per_hour


def test_a_region_that_refuses_is_told_and_hides_no_other_kind(alicloud: AlicloudApi) -> None:
    alicloud.refusals["DescribeInstances"] = (403, "Forbidden.RAM")
    alicloud.add(
        "DescribeEipAddresses", {TAG: "rest"}, AllocationId="eip-1", Status="Available", RegionId="cn-hangzhou"
    )
    answer = search_everywhere(["alicloud"], alicloud.environment)
    assert {item.kind for item in answer.unasked} == {"instance"}
    assert [item.id for item in answer.found] == ["eip-1"]


def test_the_command_prints_orphans_as_json_with_what_was_not_searched(
    user: object, keys: None, alicloud: AlicloudApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in alicloud.environment.items():
        monkeypatch.setenv(name, value)
    alicloud.add(
        "DescribeInstances",
        {TAG: "llm"},
        InstanceId="i-1",
        InstanceType=TYPE,
        Status="Stopped",
        StoppedMode="StopCharging",
        RegionId="cn-shanghai",
    )
    result = CliRunner().invoke(ps_command.app, ["--everywhere", "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert [(item["name"], item["state"], item["usd_per_hour"]) for item in answer["orphans"]] == [
        ("llm", "stopped", 0.0)
    ]
    assert [(item["cloud"], item["reason"]) for item in answer["not_searched"]] == [
        ("aws", "no AWS credentials were found")
    ]
