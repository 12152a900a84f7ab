"""Cloud accounts for the stand-in `pulumi`: providers that live in its process and talk to a server of the test's.

What a cloud is to do comes from files, because test and provider are different processes:

$DEPLOYCTL_LAB_REFUSALS   one error text per line; the next machines that are made are refused with them, in order
$DEPLOYCTL_LAB_HOLD       while this file exists, a machine that is made is not ready; $DEPLOYCTL_LAB_HOLD.begun says so
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.lab.moto_cloud import MotoCloud
from tests.lab.pulumi_model import Created, Provider
from tests.lab.pulumi_wire import Properties
from tests.lab.small_providers import small_providers

MACHINE = "aws:ec2/instance:Instance"
REFUSALS = "DEPLOYCTL_LAB_REFUSALS"
HOLD = "DEPLOYCTL_LAB_HOLD"
REGION = "eu-west-1"
HOLD_LIMIT_S = 60


def aws_account() -> dict[str, Provider]:
    """An account in the moto server at AWS_ENDPOINT_URL."""
    return {**small_providers(), "aws": MoodyCloud(REGION, os.environ["AWS_ENDPOINT_URL"])}


class MoodyCloud(MotoCloud):
    """Refuses machines, or takes its time over them, as the files say."""

    def create(self, token: str, name: str, inputs: Properties, settings: Properties) -> Created:
        if token == MACHINE:
            _refuse()
            made = super().create(token, name, inputs, settings)
            _hold()
            return made
        return super().create(token, name, inputs, settings)


def _refuse() -> None:
    path = os.environ.get(REFUSALS)
    lines = Path(path).read_text().splitlines() if path and Path(path).exists() else []
    if path and lines:
        Path(path).write_text("".join(f"{line}\n" for line in lines[1:]))
        raise RuntimeError(lines[0])


def _hold() -> None:
    path = os.environ.get(HOLD)
    deadline = time.monotonic() + HOLD_LIMIT_S
    while path and Path(path).exists() and time.monotonic() < deadline:
        Path(f"{path}.begun").touch()
        time.sleep(0.02)
