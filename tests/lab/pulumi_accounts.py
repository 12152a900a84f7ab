"""Cloud accounts for the stand-in `pulumi`: providers that live in its process and talk to a server of the test's.

What a cloud is to do comes from files, because test and provider are different processes:

$DEPLOYCTL_LAB_REFUSALS   one error text per line; the next machines that are made are refused with them, in order
$DEPLOYCTL_LAB_HOLD       while this file exists, a machine that is made is not ready; $DEPLOYCTL_LAB_HOLD.begun says so
$DEPLOYCTL_LAB_ALICLOUD   what the account on Alibaba Cloud holds
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from tests.lab.alicloud_cloud import AlicloudCloud, Thing
from tests.lab.alicloud_provider import AlicloudProvider
from tests.lab.moto_cloud import MotoCloud
from tests.lab.pulumi_model import Created, Provider
from tests.lab.pulumi_wire import Properties
from tests.lab.small_providers import small_providers

MACHINES = ("aws:ec2/instance:Instance", "alicloud:ecs/instance:Instance")
ALICLOUD = "DEPLOYCTL_LAB_ALICLOUD"
REFUSALS = "DEPLOYCTL_LAB_REFUSALS"
HOLD = "DEPLOYCTL_LAB_HOLD"
REGION = "eu-west-1"
HOLD_LIMIT_S = 60


def aws_account() -> dict[str, Provider]:
    """An account in the moto server at AWS_ENDPOINT_URL."""
    return {**small_providers(), "aws": MoodyCloud(REGION, os.environ["AWS_ENDPOINT_URL"])}


def alicloud_account() -> dict[str, Provider]:
    """An account in memory, kept in a file between processes."""
    path = Path(os.environ[ALICLOUD])
    cloud = AlicloudCloud()
    for item in json.loads(path.read_text()) if path.exists() else []:
        cloud.things[item["type"], item["id"]] = Thing(**{**item, "holds": frozenset(item["holds"])})
    cloud.numbers = itertools.count(1 + 1000 * len(cloud.things))
    atexit.register(
        lambda: path.write_text(json.dumps([asdict(item) for item in cloud.things.values()], default=sorted))
    )
    return {**small_providers(), "alicloud": MoodyAlicloud(cloud)}


class MoodyCloud(MotoCloud):
    """Refuses machines, or takes its time over them, as the files say."""

    def create(self, token: str, name: str, inputs: Properties, settings: Properties) -> Created:
        _refuse(token)
        made = super().create(token, name, inputs, settings)
        _hold(token)
        return made


class MoodyAlicloud(AlicloudProvider):
    """The same on Alibaba Cloud."""

    def create(self, token: str, name: str, inputs: Properties, settings: Properties) -> Created:
        _refuse(token)
        return super().create(token, name, inputs, settings)


def _refuse(token: str) -> None:
    path = os.environ.get(REFUSALS)
    lines = Path(path).read_text().splitlines() if path and Path(path).exists() else []
    if path and lines and token in MACHINES:
        Path(path).write_text("".join(f"{line}\n" for line in lines[1:]))
        raise RuntimeError(lines[0])


def _hold(token: str) -> None:
    path = os.environ.get(HOLD)
    deadline = time.monotonic() + HOLD_LIMIT_S
    while token in MACHINES and path and Path(path).exists() and time.monotonic() < deadline:
        Path(f"{path}.begun").touch()
        time.sleep(0.02)
