"""The sweep on AWS against moto: an orphan of every kind is planted, found, priced and deleted."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import boto3
import pytest
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count

from provision.naming import TAG, WEIGHTS_TAG, bucket_prefix, resource_name
from provision.sweep import Unknown, delete_leftovers, describe, find_leftovers
from provision.sweep.aws import AwsSearch
from tests.lab import moto_connect

NAME = "llm"
REGION = "eu-west-1"
MOTO_IMAGE = "ami-12c6146b"
TRUST = json.dumps({"Version": "2012-10-17", "Statement": []})
KINDS = AwsSearch.kinds

moto_connect.install()


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.delenv("AWS_PROFILE", raising=False)


@pytest.fixture(scope="module")
def session() -> boto3.Session:
    """One for all: reading the models of the APIs takes a second."""
    return boto3.Session("testing", "testing")


@pytest.fixture
def cloud(keys: None, session: boto3.Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[Garden]:
    with mock_aws():
        monkeypatch.setattr(boto3, "Session", lambda: session)
        yield Garden(NAME, session)


@pytest.fixture
def strict_cloud(keys: None, session: boto3.Session) -> Iterator[Garden]:
    """Every search makes a session of its own, with the credentials that the environment has then."""
    with mock_aws():
        yield Garden(NAME, session)


@dataclass(frozen=True)
class Garden:
    """Plants one resource of a kind, tagged for deployment `name`, on ground that belongs to nobody."""

    name: str
    session: boto3.Session

    def client(self, service: str) -> Any:
        return self.session.client(service, region_name=REGION)

    @property
    def tags(self) -> list[Mapping[str, str]]:
        return [{"Key": TAG, "Value": self.name}]

    def tagged(self, kind: str) -> list[Mapping[str, Any]]:
        return [{"ResourceType": kind, "Tags": self.tags}]

    @cached_property
    def ground(self) -> str:
        found: str = self.client("ec2").create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
        return found

    @cached_property
    def plot(self) -> str:
        ec2 = self.client("ec2")
        found: str = ec2.create_subnet(VpcId=self.ground, CidrBlock="10.9.1.0/24")["Subnet"]["SubnetId"]
        return found

    def plant(self, kind: str) -> str:
        """The id, as the sweep reports it."""
        planters: dict[str, Callable[[], str]] = {
            "schedule": self.schedule,
            "schedule group": self.schedule_group,
            "spot request": self.spot_request,
            "instance": self.instance,
            "NAT gateway": self.nat_gateway,
            "instance connect endpoint": self.connect_endpoint,
            "VPC endpoint": self.vpc_endpoint,
            "elastic IP": self.address,
            "network interface": self.interface,
            "volume": self.volume,
            "snapshot": self.snapshot,
            "key pair": self.key_pair,
            "security group rule": self.rule,
            "security group": self.group,
            "internet gateway": self.gateway,
            "route table": self.route_table,
            "subnet": self.subnet,
            "VPC": self.vpc,
            "instance profile": self.profile,
            "role": self.role,
            "policy": self.policy,
            "bucket": self.bucket,
        }
        return planters[kind]()

    def plant_all(self) -> None:
        for kind in KINDS:
            if kind != "schedule group":  # the schedule brings its own
                self.plant(kind)

    def schedule_group(self) -> str:
        name = resource_name(self.name, "ttl")
        self.client("scheduler").create_schedule_group(Name=name, Tags=self.tags)
        return name

    def schedule(self) -> str:
        group, name = self.schedule_group(), resource_name(self.name, "ttl")
        self.client("scheduler").create_schedule(
            Name=name,
            GroupName=group,
            ScheduleExpression="at(2030-01-01T00:00:00)",
            FlexibleTimeWindow={"Mode": "OFF"},
            Target={"Arn": "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances", "RoleArn": "arn:aws:iam::1:role/x"},
        )
        return f"{group}/{name}"

    def spot_request(self) -> str:
        made = self.client("ec2").request_spot_instances(
            SpotPrice="0.5",
            LaunchSpecification={"ImageId": MOTO_IMAGE, "KeyName": resource_name(self.name, "key")},
        )
        found: str = made["SpotInstanceRequests"][0]["SpotInstanceRequestId"]
        return found

    def instance(self) -> str:
        made = self.client("ec2").run_instances(
            ImageId=MOTO_IMAGE,
            InstanceType="g6e.xlarge",
            MinCount=1,
            MaxCount=1,
            SubnetId=self.plot,
            TagSpecifications=self.tagged("instance"),
        )
        found: str = made["Instances"][0]["InstanceId"]
        return found

    def nat_gateway(self) -> str:
        address = self.client("ec2").allocate_address(Domain="vpc")["AllocationId"]
        made = self.client("ec2").create_nat_gateway(
            SubnetId=self.plot, AllocationId=address, TagSpecifications=self.tagged("natgateway")
        )
        found: str = made["NatGateway"]["NatGatewayId"]
        return found

    def connect_endpoint(self) -> str:
        made = self.client("ec2").create_instance_connect_endpoint(
            SubnetId=self.plot, TagSpecifications=self.tagged("instance-connect-endpoint")
        )
        found: str = made["InstanceConnectEndpoint"]["InstanceConnectEndpointId"]
        return found

    def vpc_endpoint(self) -> str:
        made = self.client("ec2").create_vpc_endpoint(
            VpcId=self.ground,
            ServiceName=f"com.amazonaws.{REGION}.s3",
            VpcEndpointType="Gateway",
            TagSpecifications=self.tagged("vpc-endpoint"),
        )
        found: str = made["VpcEndpoint"]["VpcEndpointId"]
        return found

    def address(self) -> str:
        made = self.client("ec2").allocate_address(Domain="vpc", TagSpecifications=self.tagged("elastic-ip"))
        found: str = made["AllocationId"]
        return found

    def interface(self) -> str:
        made = self.client("ec2").create_network_interface(
            SubnetId=self.plot, TagSpecifications=self.tagged("network-interface")
        )
        found: str = made["NetworkInterface"]["NetworkInterfaceId"]
        return found

    def volume(self, size: int = 100, tag: str = TAG) -> str:
        specification = [{"ResourceType": "volume", "Tags": [{"Key": tag, "Value": self.name}]}]
        made = self.client("ec2").create_volume(
            Size=size, AvailabilityZone=f"{REGION}a", VolumeType="gp3", TagSpecifications=specification
        )
        found: str = made["VolumeId"]
        return found

    def snapshot(self) -> str:
        bare = self.client("ec2").create_volume(Size=1, AvailabilityZone=f"{REGION}a")["VolumeId"]
        made = self.client("ec2").create_snapshot(VolumeId=bare, TagSpecifications=self.tagged("snapshot"))
        found: str = made["SnapshotId"]
        return found

    def key_pair(self) -> str:
        made = self.client("ec2").create_key_pair(
            KeyName=resource_name(self.name, "key"), TagSpecifications=self.tagged("key-pair")
        )
        found: str = made["KeyName"]
        return found

    def rule(self) -> str:
        group = self.client("ec2").create_security_group(GroupName="theirs", Description="-", VpcId=self.ground)
        made = self.client("ec2").authorize_security_group_ingress(
            GroupId=group["GroupId"],
            IpPermissions=[
                {"IpProtocol": "tcp", "FromPort": 1, "ToPort": 2, "IpRanges": [{"CidrIp": "203.0.113.7/32"}]}
            ],
            TagSpecifications=self.tagged("security-group-rule"),
        )
        found: str = made["SecurityGroupRules"][0]["SecurityGroupRuleId"]
        return found

    def group(self) -> str:
        made = self.client("ec2").create_security_group(
            GroupName="orphan", Description="-", VpcId=self.ground, TagSpecifications=self.tagged("security-group")
        )
        found: str = made["GroupId"]
        return found

    def gateway(self) -> str:
        made = self.client("ec2").create_internet_gateway(TagSpecifications=self.tagged("internet-gateway"))
        found: str = made["InternetGateway"]["InternetGatewayId"]
        self.client("ec2").attach_internet_gateway(InternetGatewayId=found, VpcId=self.ground)
        return found

    def route_table(self) -> str:
        made = self.client("ec2").create_route_table(VpcId=self.ground, TagSpecifications=self.tagged("route-table"))
        found: str = made["RouteTable"]["RouteTableId"]
        self.client("ec2").associate_route_table(RouteTableId=found, SubnetId=self.plot)
        return found

    def subnet(self) -> str:
        made = self.client("ec2").create_subnet(
            VpcId=self.ground, CidrBlock="10.9.2.0/24", TagSpecifications=self.tagged("subnet")
        )
        found: str = made["Subnet"]["SubnetId"]
        return found

    def vpc(self) -> str:
        made = self.client("ec2").create_vpc(CidrBlock="10.8.0.0/16", TagSpecifications=self.tagged("vpc"))
        found: str = made["Vpc"]["VpcId"]
        return found

    def role(self) -> str:
        name, iam = resource_name(self.name, "role"), self.client("iam")
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=TRUST, Tags=self.tags)
        document = {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}],
        }
        iam.put_role_policy(RoleName=name, PolicyName="mailbox", PolicyDocument=json.dumps(document))
        return name

    def profile(self) -> str:
        name, iam = resource_name(self.name, "profile"), self.client("iam")
        iam.create_role(RoleName="theirs", AssumeRolePolicyDocument=TRUST)
        iam.create_instance_profile(InstanceProfileName=name, Tags=self.tags)
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName="theirs")
        return name

    def policy(self) -> str:
        document = {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}],
        }
        made = self.client("iam").create_policy(
            PolicyName=resource_name(self.name, "vm"), PolicyDocument=json.dumps(document), Tags=self.tags
        )
        found: str = made["Policy"]["Arn"]
        return found

    def bucket(self) -> str:
        name, s3 = bucket_prefix(self.name) + "0a1b2c3d", self.client("s3")
        s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
        s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        s3.put_object(Bucket=name, Key="release/current.json", Body=b"{}")
        s3.delete_object(Bucket=name, Key="release/current.json")
        return name


def test_an_account_without_the_deployment_has_nothing_left(cloud: Garden) -> None:
    sweep = find_leftovers("aws", REGION, NAME)
    assert sweep.is_clean
    assert describe(sweep) == "0 resources left, $0.00/h"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_a_planted_orphan_is_found_and_deleted(cloud: Garden, kind: str) -> None:
    planted = cloud.plant(kind)
    search = AwsSearch(REGION, NAME)
    found = search.ask(kind)
    assert not isinstance(found, Unknown)
    assert [(item.kind, item.id) for item in found] == [(kind, planted)]
    assert [search.delete(item) for item in found] == [None]
    assert search.ask(kind) == ()


def test_orphans_of_all_kinds_are_deleted_in_an_order_that_works(cloud: Garden) -> None:
    cloud.plant_all()
    sweep = find_leftovers("aws", REGION, NAME)
    assert tuple(dict.fromkeys(item.kind for item in sweep.found)) == KINDS
    assert delete_leftovers(sweep) == {}
    assert find_leftovers("aws", REGION, NAME).is_clean


def test_orphans_of_another_deployment_whose_name_begins_alike_are_not_ours(cloud: Garden) -> None:
    other = Garden(f"{NAME}-2", cloud.session)
    other.plant_all()
    assert find_leftovers("aws", REGION, NAME).found == ()


def test_untagged_things_inside_our_vpc_are_found(cloud: Garden) -> None:
    ours, ec2 = cloud.vpc(), cloud.client("ec2")
    subnet = ec2.create_subnet(VpcId=ours, CidrBlock="10.8.1.0/24")["Subnet"]["SubnetId"]
    interface = ec2.create_network_interface(SubnetId=subnet)["NetworkInterface"]["NetworkInterfaceId"]
    group = ec2.create_security_group(GroupName="x", Description="-", VpcId=ours)["GroupId"]
    sweep = find_leftovers("aws", REGION, NAME)
    assert [item.id for item in sweep.found] == [interface, group, subnet, ours]


def test_an_orphan_without_tags_is_found_by_its_name(cloud: Garden) -> None:
    iam = cloud.client("iam")
    for part in ("role", "somebody-elses"):
        iam.create_role(RoleName=resource_name(NAME, part), AssumeRolePolicyDocument=TRUST)
    assert [item.id for item in find_leftovers("aws", REGION, NAME).found] == [resource_name(NAME, "role")]


def test_the_bill_counts_what_is_known(cloud: Garden) -> None:
    for kind in ("instance", "elastic IP", "volume"):
        cloud.plant(kind)
    sweep = find_leftovers("aws", REGION, NAME)
    assert sweep.usd_per_hour == pytest.approx(1.861 + 0.005 + 100 * 0.08 / 730)
    assert describe(sweep).splitlines()[0] == "3 resources left, $1.88/h"


def test_a_resource_without_a_known_price_makes_the_bill_a_lower_bound(cloud: Garden) -> None:
    cloud.plant("elastic IP")
    cloud.plant("snapshot")
    sweep = find_leftovers("aws", REGION, NAME)
    assert sweep.usd_per_hour is None
    assert "at least $0.01/h, the rest unknown" in describe(sweep)


def test_a_kept_disk_of_weights_is_no_leftover_but_is_priced(cloud: Garden) -> None:
    disk = cloud.volume(500, WEIGHTS_TAG)
    assert [item.id for item in find_leftovers("aws", REGION, NAME).found] == [disk]
    sweep = find_leftovers("aws", REGION, NAME, keep_weights=True)
    assert sweep.is_clean
    assert [item.id for item in sweep.kept] == [disk]
    assert sweep.usd_per_hour == pytest.approx(500 * 0.08 / 730)
    delete_leftovers(sweep)
    assert [item.id for item in find_leftovers("aws", REGION, NAME).found] == [disk]


def test_a_terminated_instance_is_gone(cloud: Garden) -> None:
    cloud.client("ec2").terminate_instances(InstanceIds=[cloud.instance()])
    assert find_leftovers("aws", REGION, NAME).found == ()


def test_without_credentials_everything_is_unknown(keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    sweep = find_leftovers("aws", REGION, NAME)
    assert {item.kind for item in sweep.unknown} == set(KINDS)
    assert not sweep.is_clean
    assert "no AWS credentials were found" in describe(sweep)
    assert "0 resources left, $0.00/h" not in describe(sweep)


def test_a_refusal_is_unknown_and_names_the_missing_permission(
    strict_cloud: Garden, monkeypatch: pytest.MonkeyPatch
) -> None:
    iam = strict_cloud.client("iam")
    iam.create_user(UserName="narrow")
    statement = {"Effect": "Allow", "Action": ["ec2:DescribeVolumes"], "Resource": "*"}
    iam.put_user_policy(
        UserName="narrow",
        PolicyName="p",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [statement]}),
    )
    key = iam.create_access_key(UserName="narrow")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])

    @set_initial_no_auth_action_count(0)
    def ask() -> dict[str, str]:
        return {item.kind: item.reason for item in find_leftovers("aws", REGION, NAME).unknown}

    reasons = ask()
    assert "volume" not in reasons
    assert "the credentials lack ec2:DescribeAddresses" in reasons["elastic IP"]
    assert "the credentials lack s3:ListAllMyBuckets" in reasons["bucket"]


def test_credentials_that_aws_does_not_take_are_unknown_too(
    strict_cloud: Garden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")

    @set_initial_no_auth_action_count(0)
    def ask() -> set[str]:
        return {item.reason for item in find_leftovers("aws", REGION, NAME).unknown}

    assert "AWS does not take these credentials: wrong, or expired" in ask()


def test_every_delete_command_is_one_that_the_aws_command_knows(cloud: Garden) -> None:
    """Operation and options are held against botocore's model of the API, which the command line is made from."""
    cloud.plant_all()
    unknown = []
    for item in find_leftovers("aws", REGION, NAME).found:
        for command in item.delete_command.split(" && "):
            words = shlex.split(command)
            if words[1] == "s3" or words[2] == "wait":
                continue
            service = {"s3api": "s3"}.get(words[1], words[1])
            model = cloud.client(service).meta
            operation = model.method_to_api_mapping.get(words[2].replace("-", "_"))
            members = model.service_model.operation_model(operation).input_shape.members if operation else {}
            options = {word[2:].replace("-", "") for word in words[3:] if word.startswith("--")} - {"region"}
            unknown += [command] if not operation or options - {name.lower() for name in members} else []
    assert unknown == []
