"""The machine stops itself by its cloud's API: EC2 in moto, ECS by a server that speaks its RPC form."""

from __future__ import annotations

import boto3
import pytest
from moto import mock_aws

from runtime.agent.power import PowerError, ecs_endpoint, stop_instance
from runtime.vm import Vm
from tests.lab.alicloud_api import AlicloudApi

ON_AWS = Vm(name="chat", provider="aws", region="eu-west-1", bucket="b", endpoint="https://s3.example")
ON_ALICLOUD = Vm(name="chat", provider="alicloud", region="cn-hangzhou", bucket="b", endpoint="https://oss.example")


@pytest.fixture
def _aws_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")


@pytest.mark.usefixtures("_aws_keys")
@pytest.mark.slow
def test_on_aws_the_machine_is_stopped_and_not_terminated() -> None:
    with mock_aws():
        ec2 = boto3.client("ec2", region_name=ON_AWS.region)
        image = ec2.describe_images()["Images"][0]["ImageId"]
        run = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, InstanceInitiatedShutdownBehavior="terminate")
        instance = run["Instances"][0]["InstanceId"]
        stop_instance(ON_AWS, instance)
        (found,) = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"]
        assert found["State"]["Name"] == "stopped"


@pytest.mark.usefixtures("_aws_keys")
def test_a_refusal_says_why() -> None:
    with mock_aws(), pytest.raises(PowerError, match="InvalidInstanceID"):
        stop_instance(ON_AWS, "i-0123456789abcdef0")


def test_on_alibaba_cloud_the_charging_ends_with_the_machine() -> None:
    with AlicloudApi() as api:
        instance = api.add("DescribeInstances", InstanceId="i-bp1", Status="Running")
        stop_instance(ON_ALICLOUD, instance, api.environment)
        assert api.stopped == {instance: "StopCharging"}


def test_on_alibaba_cloud_a_refusal_says_why() -> None:
    with AlicloudApi() as api, pytest.raises(PowerError, match="InvalidInstanceId"):
        stop_instance(ON_ALICLOUD, "i-nobody", api.environment)


def test_ecs_is_asked_inside_of_the_vpc() -> None:
    assert ecs_endpoint("cn-hangzhou", {}) == "https://ecs-vpc.cn-hangzhou.aliyuncs.com"
    assert ecs_endpoint("cn-hangzhou", {"ECS_ENDPOINT": "http://127.0.0.1:1"}) == "http://127.0.0.1:1"
