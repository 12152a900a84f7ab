"""The preflight inside the program: what the clouds answer, what they refuse to answer, and what stops a preview."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from provision.preflight import read_candidates
from tests.lab.alicloud_cloud import AlicloudCloud
from tests.lab.alicloud_provider import AlicloudProvider
from tests.lab.aws_stack import aws_account, make_stack
from tests.lab.pulumi_engine import Engine
from tests.lab.pulumi_model import Run
from tests.lab.small_providers import small_providers
from tests.lab.small_wheel import make_small_wheel

TYPE = "ecs.gn7i-c16g1.4xlarge"
OTHER = "ecs.gn7i-c32g1.8xlarge"
DATA_SOURCES = {
    "getInstances", "getZones", "getInstanceTypes", "getQuotas", "getNetworks", "getEipAddresses",
}  # fmt: skip


@pytest.fixture
def cloud() -> AlicloudCloud:
    return AlicloudCloud(prices={TYPE: 10.4})


@pytest.fixture
def preview(cloud: AlicloudCloud, tmp_path: Path) -> Callable[..., Run]:
    def run(**config: str) -> Run:
        values = {
            "cloud": "alicloud",
            "region": "cn-hangzhou",
            "instance_type": TYPE,
            "model": "modelscope:Qwen/Qwen2.5-7B-Instruct",
            "allowed_cidrs": "198.51.100.0/24",
            "wait": "false",
            "runtime_wheel": str(make_small_wheel(tmp_path)),
            **config,
        }
        providers = {"alicloud": AlicloudProvider(cloud), **small_providers()}
        return Engine(
            providers, stack="bot", config={f"deployctl:{key}": item for key, item in values.items()}
        ).preview()

    return run


def stopped(run: Run) -> str:
    """What a preview says that stopped before it planned any machine."""
    assert not run.succeeded
    assert not [step for step in run.steps if step.type.startswith("alicloud:")]
    assert "Traceback" not in run.explain()
    return run.explain()


def candidates(run: Run) -> list[str]:
    (found,) = [places for text in run.messages("INFO") if (places := read_candidates(text))]
    return [str(place) for place in found]


def test_what_is_known_is_said_before_anything_is_made(preview: Callable[..., Run]) -> None:
    said = "\n".join(preview().messages("INFO"))
    assert "16 vCPUs needed, 160 of 160 free" in said
    assert "VPCs in the region: 1 VPCs needed, 10 of 10 free" in said
    assert "10.4 per hour in the account's currency" in said
    assert "GiB of cloud_essd, encrypted" in said
    assert "of 12288 bytes" in said


def test_an_account_that_may_ask_nothing_may_still_deploy(preview: Callable[..., Run], cloud: AlicloudCloud) -> None:
    cloud.denied |= DATA_SOURCES
    done = preview()
    assert done.succeeded, done.explain()
    assert candidates(done) == [f"{TYPE}/cn-hangzhou-b"]
    assert sum("may not call" in text for text in done.messages("WARNING")) >= 4


def test_a_full_quota_stops_the_preview_and_names_the_page(preview: Callable[..., Run], cloud: AlicloudCloud) -> None:
    cloud.quotas["vpc"] = 0
    text = stopped(preview())
    assert "1 VPCs are needed and the account may have 0" in text
    assert "https://quotas.console.aliyun.com/products/vpc/quotas" in text


def test_a_type_that_is_sold_out_everywhere_stops(preview: Callable[..., Run], cloud: AlicloudCloud) -> None:
    cloud.sold_out |= {(TYPE, zone) for zone in cloud.zones}
    assert "sold out, in every zone of cn-hangzhou" in stopped(preview())


def test_where_only_another_type_is_sold_the_preview_says_how_to_take_it(
    preview: Callable[..., Run], cloud: AlicloudCloud
) -> None:
    cloud.sold_out |= {(TYPE, zone) for zone in cloud.zones}
    done = preview(instance_type=f"{TYPE},{OTHER}")
    assert candidates(done) == [f"{OTHER}/{zone}" for zone in cloud.zones]
    assert f"pulumi config set deployctl:placement {OTHER}/cn-hangzhou-b" in stopped(done)


def test_an_image_that_is_not_there_stops(preview: Callable[..., Run], cloud: AlicloudCloud) -> None:
    cloud.images.clear()
    assert f"no image that {TYPE} can boot" in stopped(preview())


def test_the_second_look_does_not_count_the_deployment_itself(cloud: AlicloudCloud, tmp_path: Path) -> None:
    """With quotas that are just enough, an update of what exists is not refused."""
    cloud.quotas = {TYPE: 16, "vpc": 1, "eip": 1}
    values = {
        "cloud": "alicloud", "region": "cn-hangzhou", "instance_type": TYPE, "wait": "false",
        "model": "modelscope:Qwen/Qwen2.5-7B-Instruct", "allowed_cidrs": "198.51.100.0/24",
        "runtime_wheel": str(make_small_wheel(tmp_path)),
    }  # fmt: skip
    providers = {"alicloud": AlicloudProvider(cloud), **small_providers()}
    engine = Engine(providers, stack="bot", config={f"deployctl:{key}": item for key, item in values.items()})
    for done in (engine.up(), engine.up()):
        assert done.succeeded, done.explain()


def test_on_aws_the_same_rules_speak_of_its_own_words(tmp_path: Path) -> None:
    with aws_account():
        done = make_stack(tmp_path, zones="eu-west-1b,eu-west-1a").preview()
    said = "\n".join(done.messages("INFO"))
    assert candidates(done) == ["g5.xlarge/eu-west-1b", "g5.xlarge/eu-west-1a"]
    assert "quota: on-demand vCPUs of G and VT instances: 4 vCPUs needed" in said
    assert "live: AWS's price list for eu-west-1" in said
