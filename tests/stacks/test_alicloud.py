"""The Pulumi program on Alibaba Cloud, held on the test engine and an account in memory."""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from provision.naming import TAG, WEIGHTS_TAG
from runtime.vm import decode_vm
from stacks.alicloud import RESOURCE_TYPES
from tests.lab.alicloud_cloud import IMAGE, AlicloudCloud
from tests.lab.alicloud_provider import AlicloudProvider
from tests.lab.pulumi_engine import Engine
from tests.lab.pulumi_model import Registration, Run
from tests.lab.small_providers import small_providers
from tests.lab.small_wheel import make_small_wheel

INSTANCE = "alicloud:ecs/instance:Instance"
TYPE = "ecs.gn7i-c16g1.4xlarge"
BASIC = {
    "cloud": "alicloud",
    "region": "cn-hangzhou",
    "instance_type": TYPE,
    "model": "modelscope:Qwen/Qwen2.5-7B-Instruct",
    "allowed_cidrs": "198.51.100.0/24,203.0.113.9/32",
    "wait": "false",
}
Make = Callable[..., Engine]


@pytest.fixture
def cloud() -> AlicloudCloud:
    return AlicloudCloud()


@pytest.fixture
def make(cloud: AlicloudCloud, tmp_path: Path) -> Make:
    wheel = make_small_wheel(tmp_path)

    def made(**config: str) -> Engine:
        values = {**BASIC, "runtime_wheel": str(wheel), **config}
        providers = {"alicloud": AlicloudProvider(cloud), **small_providers()}
        named = {f"deployctl:{key}": value for key, value in values.items() if value}
        return Engine(providers, stack="bot", config=named)

    return made


def up(engine: Engine) -> Run:
    done = engine.up()
    assert done.succeeded, done.explain()
    return done


def instance(run: Run) -> Registration:
    return run.one(INSTANCE)


def test_up_makes_a_public_endpoint(make: Make, cloud: AlicloudCloud) -> None:
    done = up(make())
    (machine,) = cloud.find("/instance:Instance")
    (address,) = cloud.find("EipAddress")
    assert done.values["endpoint"] == f"https://{address.values['ipAddress']}:8000/v1"
    assert done.values["instance_id"] == machine.id
    assert done.values["private_ip"] == machine.values["privateIp"] == "10.42.1.10"
    assert done.values["image"] == IMAGE


def test_a_preview_with_unknowns_makes_nothing(make: Make, cloud: AlicloudCloud) -> None:
    done = make().preview()
    assert done.succeeded, done.explain()
    assert "bot-machine" in done.names("create")
    assert not cloud.things
    assert done.seconds < 30
