"""A deployment on the test engine's Alibaba Cloud: the unmodified program, an account in memory, what to ask both."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from runtime.vm import Vm, decode_vm
from tests.lab.alicloud_cloud import AlicloudCloud, Thing
from tests.lab.alicloud_provider import AlicloudProvider
from tests.lab.program_hosts import WarmHost
from tests.lab.pulumi_engine import Engine
from tests.lab.pulumi_model import Registration, Run
from tests.lab.small_providers import small_providers
from tests.lab.small_wheel import make_small_wheel
from tests.lab.stack import Stack

NAME = "bot"
TYPE = "ecs.gn7i-c16g1.4xlarge"
CONFIG = {
    "cloud": "alicloud",
    "region": "cn-hangzhou",
    "instance_type": TYPE,
    "model": "modelscope:Qwen/Qwen2.5-7B-Instruct",
    "allowed_cidrs": "198.51.100.0/24,203.0.113.9/32",
    "wait": "false",
}
INSTANCE = "alicloud:ecs/instance:Instance"
OBJECT = "alicloud:oss/bucketObject:BucketObject"
RULE = "alicloud:ecs/securityGroupRule:SecurityGroupRule"


@dataclass(frozen=True, slots=True)
class AlicloudStack(Stack):
    """One stack and its cloud."""

    cloud: AlicloudCloud

    def machine(self) -> Thing:
        (machine,) = self.cloud.find("/instance:Instance")
        return machine

    def user_data(self) -> str:
        return base64.b64decode(self.machine().values["userData"]).decode()

    def vm(self) -> Vm:
        """vm.json of the machine's user-data."""
        files = yaml.safe_load(self.user_data())["write_files"]
        (vm,) = [item["content"] for item in files if item["path"] == "/etc/deployctl/vm.json"]
        return decode_vm(vm.encode())


def make_stack(folder: Path, cloud: AlicloudCloud | None = None, **config: str) -> AlicloudStack:
    """`folder` gets the wheel."""
    account = cloud or AlicloudCloud()
    providers = {"alicloud": AlicloudProvider(account), **small_providers()}
    engine = Engine(providers, stack=NAME, secret_keys=["deployctl:hub_token"], host=WarmHost())
    stack = AlicloudStack(engine, account)
    stack.configure(**CONFIG, runtime_wheel=str(make_small_wheel(folder)))
    stack.configure(**config)
    return stack


def content_of(run: Run, part: str) -> str:
    """What was written into the mailbox as `part`."""
    (item,) = [item for item in run.of_type(OBJECT) if item.name == f"{NAME}-{part}"]
    return str(item.values["content"])


def open_ports(run: Run) -> set[tuple[str, str]]:
    """(ports, CIDR) of every way in."""
    return {(item.values["portRange"], item.values["cidrIp"]) for item in run.of_type(RULE)}


def ours(run: Run) -> Iterator[Registration]:
    """Registrations of the cloud's own types."""
    return (item for item in run.registrations.values() if item.type.startswith("alicloud:"))
