"""A deployment on the test engine's AWS: the unmodified program, resources in moto, and what to ask of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from moto import mock_aws
from moto.core.config import DefaultConfig

from provision.naming import TAG
from tests.lab.moto_cloud import MotoCloud
from tests.lab.program_hosts import WarmHost
from tests.lab.pulumi_engine import Engine
from tests.lab.pulumi_model import Registration, Run
from tests.lab.small_providers import small_providers
from tests.lab.small_wheel import make_small_wheel
from tests.lab.stack import Stack

NAME = "chat"
REGION = "eu-west-1"
CALLER = "198.51.100.7/32"
CONFIG = {
    "cloud": "aws",
    "region": REGION,
    "model": "hf:Qwen/Qwen2.5-7B-Instruct",
    "instance_type": "g5.xlarge",
    "allowed_cidrs": CALLER,
    "wait": "false",
}
KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
}
UNTAGGED = (  # types that AWS gives no tags, or that live inside a tagged one
    "aws:ec2/eipAssociation:EipAssociation",
    "aws:ec2/route:Route",
    "aws:ec2/routeTableAssociation:RouteTableAssociation",
    "aws:ec2/volumeAttachment:VolumeAttachment",
    "aws:scheduler/schedule:Schedule",
)


@dataclass(frozen=True, slots=True)
class AwsStack(Stack):
    """One stack and its cloud."""

    cloud: MotoCloud

    @property
    def ec2(self) -> Any:
        return self.cloud.clients.ec2

    def instance(self) -> Mapping[str, Any]:
        """The one machine that is not terminated."""
        alive = {"Name": "instance-state-name", "Values": ["pending", "running", "stopped"]}
        (found,) = self.ec2.describe_instances(Filters=[alive])["Reservations"]
        instance: Mapping[str, Any] = found["Instances"][0]
        return instance

    def ingress(self) -> set[tuple[int, str]]:
        """(port, who) of every way into a security group of the deployment; "who" is a CIDR or a group."""
        rules = self.ec2.describe_security_group_rules()["SecurityGroupRules"]
        return {
            (rule["FromPort"], rule.get("CidrIpv4") or "group")
            for rule in rules
            if not rule["IsEgress"] and rule["GroupId"] in self.groups()
        }

    def groups(self) -> set[str]:
        found = self.ec2.describe_security_groups(Filters=[{"Name": f"tag:{TAG}", "Values": [NAME]}])
        return {group["GroupId"] for group in found["SecurityGroups"]}

    def objects(self, bucket: str) -> dict[str, bytes]:
        """Key and content of everything in a bucket."""
        s3 = self.cloud.clients.s3
        keys = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]
        return {key: s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


@contextmanager
def aws_account(*, policies: bool = False) -> Iterator[None]:
    """An empty account in moto, and credentials for it. `policies`: with AWS's own, which take seconds to load and
    which a role of an intranet machine is given."""
    options: DefaultConfig = {"iam": {"load_aws_managed_policies": policies}}
    with pytest.MonkeyPatch.context() as patch, mock_aws(config=options):
        for name, value in KEYS.items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "HF_TOKEN"):
            patch.delenv(name, raising=False)
        yield


def make_stack(folder: Path, **config: str) -> AwsStack:
    """Inside `aws_account`. `folder` gets the wheel."""
    cloud = MotoCloud(REGION)
    stack = AwsStack(Engine({"aws": cloud, **small_providers()}, stack=NAME, host=WarmHost()), cloud)
    stack.configure(**CONFIG, runtime_wheel=str(make_small_wheel(folder)))
    stack.configure(**config)
    return stack


def inputs_of(run: Run) -> dict[str, Registration]:
    """The registrations of AWS resources, by "<type's last word> <name>"."""
    return {
        f"{item.type.rpartition(':')[2]} {item.name}": item
        for item in run.registrations.values()
        if item.type.startswith("aws:")
    }
