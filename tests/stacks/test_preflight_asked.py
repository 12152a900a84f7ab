"""The preflight inside the program: what the clouds answer, what they refuse to answer, and what stops a preview."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.preflight import read_candidates
from tests.lab import alicloud_stack, aws_stack
from tests.lab.alicloud_cloud import AlicloudCloud
from tests.lab.alicloud_stack import TYPE, AlicloudStack
from tests.lab.pulumi_model import Run

OTHER = "ecs.gn7i-c32g1.8xlarge"
DATA_SOURCES = {
    "getInstances", "getZones", "getInstanceTypes", "getQuotas", "getNetworks", "getEipAddresses",
}  # fmt: skip


@pytest.fixture
def stack(tmp_path: Path) -> AlicloudStack:
    return alicloud_stack.make_stack(tmp_path, AlicloudCloud(prices={TYPE: 10.4}))


@pytest.fixture
def cloud(stack: AlicloudStack) -> AlicloudCloud:
    return stack.cloud


def stopped(stack: AlicloudStack) -> str:
    """What a preview says that stopped before it planned anything of the cloud."""
    said = stack.refused()
    assert not [step for step in stack.engine.run.steps if step.type.startswith("alicloud:")]
    return said


def candidates(run: Run) -> list[str]:
    (found,) = [places for text in run.messages("INFO") if (places := read_candidates(text))]
    return [str(place) for place in found]


def test_what_is_known_is_said_before_anything_is_made(stack: AlicloudStack) -> None:
    said = "\n".join(stack.preview().messages("INFO"))
    assert "16 vCPUs needed, 160 of 160 free" in said
    assert "VPCs in the region: 1 VPCs needed, 10 of 10 free" in said
    assert "10.4 per hour in the account's currency" in said
    assert "GiB of cloud_essd, encrypted" in said
    assert "of 12288 bytes" in said


def test_an_account_that_may_ask_nothing_may_still_deploy(stack: AlicloudStack, cloud: AlicloudCloud) -> None:
    cloud.denied |= DATA_SOURCES
    done = stack.preview()
    assert candidates(done) == [f"{TYPE}/cn-hangzhou-b"]
    assert sum("may not call" in text for text in done.messages("WARNING")) >= 4


def test_a_full_quota_stops_the_preview_and_names_the_page(stack: AlicloudStack, cloud: AlicloudCloud) -> None:
    cloud.quotas["vpc"] = 0
    said = stopped(stack)
    assert "1 VPCs are needed and the account may have 0" in said
    assert "https://quotas.console.aliyun.com/products/vpc/quotas" in said


def test_a_type_that_is_sold_out_everywhere_stops(stack: AlicloudStack, cloud: AlicloudCloud) -> None:
    cloud.sold_out |= {(TYPE, zone) for zone in cloud.zones}
    assert "sold out, in every zone of cn-hangzhou" in stopped(stack)


def test_where_only_another_type_is_sold_the_preview_says_how_to_take_it(
    stack: AlicloudStack, cloud: AlicloudCloud
) -> None:
    cloud.sold_out |= {(TYPE, zone) for zone in cloud.zones}
    stack.configure(instance_type=f"{TYPE},{OTHER}")
    assert f"pulumi config set deployctl:placement {OTHER}/cn-hangzhou-b" in stopped(stack)
    assert candidates(stack.engine.run) == [f"{OTHER}/{zone}" for zone in cloud.zones]


def test_an_image_that_is_not_there_stops(stack: AlicloudStack, cloud: AlicloudCloud) -> None:
    cloud.images.clear()
    assert f"no image that {TYPE} can boot" in stopped(stack)


@pytest.mark.slow
def test_a_second_look_does_not_count_the_deployment_itself(stack: AlicloudStack, cloud: AlicloudCloud) -> None:
    """With quotas that are just enough, an update of what exists is not refused."""
    cloud.quotas = {TYPE: 16, "vpc": 1, "eip": 1}
    stack.up()
    stack.up()


@pytest.mark.slow
def test_on_aws_the_same_rules_speak_of_its_own_words(tmp_path: Path) -> None:
    with aws_stack.aws_account():
        done = aws_stack.make_stack(tmp_path, zones="eu-west-1b,eu-west-1a").preview()
    said = "\n".join(done.messages("INFO"))
    assert candidates(done) == ["g5.xlarge/eu-west-1b", "g5.xlarge/eu-west-1a"]
    assert "quota: on-demand vCPUs of G and VT instances: 4 vCPUs needed" in said
    assert "live: AWS's price list for eu-west-1" in said
