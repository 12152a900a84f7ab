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
from tests.lab.pulumi_engine import Engine
from tests.lab.pulumi_model import Registration, Run
from tests.lab.small_providers import small_providers
from tests.lab.small_wheel import make_small_wheel

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
class AlicloudStack:
    """One stack and its cloud."""

    engine: Engine
    cloud: AlicloudCloud

    def set(self, **config: str) -> None:
        """Config keys of the project; an empty value takes a key away."""
        for key, value in config.items():
            name = f"deployctl:{key}"
            if value:
                self.engine.config[name] = value
            else:
                self.engine.config.pop(name, None)

    def up(self) -> Run:
        done = self.engine.up()
        assert done.succeeded, done.explain()
        return done

    def preview(self) -> Run:
        done = self.engine.preview()
        assert done.succeeded, done.explain()
        return done

    def refused(self) -> str:
        """What the program says when it refuses, before it plans anything of the cloud."""
        done = self.engine.preview()
        assert not done.succeeded
        assert "Traceback" not in done.explain()
        return done.explain()

    def failed(self) -> str:
        """What an update says that the cloud refuses."""
        done = self.engine.up()
        assert not done.succeeded
        return done.explain()

    def destroy(self) -> Run:
        done = self.engine.destroy()
        assert done.succeeded, done.explain()
        return done

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
    stack = AlicloudStack(Engine(providers, stack=NAME, secret_keys=["deployctl:hub_token"]), account)
    stack.set(**CONFIG, runtime_wheel=str(make_small_wheel(folder)))
    stack.set(**config)
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
