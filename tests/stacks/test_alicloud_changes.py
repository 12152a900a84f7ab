"""The life of a stack on Alibaba Cloud: preview, second run, changes, no stock, the end. Held on the test engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.mailbox import decode_life
from tests.lab.alicloud_cloud import AlicloudCloud
from tests.lab.alicloud_stack import CONFIG, INSTANCE, TYPE, AlicloudStack, content_of, make_stack

NEWER = "ubuntu_24_04_x64_20G_alibase_20270101.vhd"


@pytest.fixture
def stack(tmp_path: Path) -> AlicloudStack:
    return make_stack(tmp_path)


def test_a_preview_with_unknowns_makes_nothing(stack: AlicloudStack) -> None:
    assert "bot-machine" in stack.preview().names("create")
    assert not stack.cloud.things


@pytest.mark.parametrize(
    "sold_out",
    [("cn-hangzhou-b",), pytest.param(("cn-hangzhou-b", "cn-hangzhou-h", "cn-hangzhou-i"), marks=pytest.mark.slow)],
)
def test_a_second_run_changes_nothing_though_image_stock_and_laptop_have_changed(
    stack: AlicloudStack, tmp_path: Path, sold_out: tuple[str, ...]
) -> None:
    stack.configure(weights_disk_gib="60")
    stack.up()
    stack.cloud.images.append(NEWER)
    stack.cloud.sold_out |= {(TYPE, zone) for zone in sold_out}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    wheel = Path(stack.engine.config["deployctl:runtime_wheel"])
    stack.configure(runtime_wheel=str(wheel.rename(elsewhere / wheel.name)))
    assert [step for step in stack.up().steps if step.operation != "same"] == []


def test_another_model_travels_through_the_mailbox_and_leaves_the_machine_alone(stack: AlicloudStack) -> None:
    first = stack.up().values["release"]
    stack.configure(max_model_len="2048")
    done = stack.up()
    assert done.values["release"] != first
    assert [step.operation for step in done.steps if step.type == INSTANCE] == ["same"]
    assert [step.operation for step in done.steps if step.name == "bot-current"] == ["update"]


@pytest.mark.slow
def test_another_type_is_given_to_the_same_machine_and_its_disk_does_not_shrink(stack: AlicloudStack) -> None:
    stack.configure(instance_type="ecs.gn7e-c16g1.4xlarge", model="modelscope:Qwen/Qwen2.5-32B-Instruct")
    first = stack.up().values["instance_id"]
    stack.configure(instance_type=TYPE, model=CONFIG["model"])
    done = stack.up()
    assert done.values["instance_id"] == first
    assert [step.changed for step in done.steps if step.type == INSTANCE] == [("instanceType",)]


@pytest.mark.slow
def test_another_zone_by_name_is_a_new_machine_at_the_same_address(stack: AlicloudStack) -> None:
    stack.configure(placement=f"{TYPE}/cn-hangzhou-b")
    first = stack.up().values
    stack.configure(placement=f"{TYPE}/cn-hangzhou-i")
    done = stack.up()
    assert done.values["instance_id"] != first["instance_id"]
    assert done.values["zone"] == "cn-hangzhou-i"
    assert done.values["endpoint"] == first["endpoint"]
    assert len(stack.cloud.find("/instance:Instance")) == 1


@pytest.mark.slow
def test_extend_moves_the_timer_of_the_same_machine(stack: AlicloudStack) -> None:
    before = stack.up().values["instance_id"]
    later = int(stack.cloud.now().timestamp()) + 20 * 3600
    stack.configure(expires_at=str(later))
    done = stack.up()
    assert done.values["instance_id"] == before
    assert [step.changed for step in done.steps if step.type == INSTANCE] == [("autoReleaseTime",)]
    assert decode_life(content_of(done, "life").encode()).expires_at == later


@pytest.mark.slow
def test_a_ttl_of_zero_switches_the_timer_off_with_a_warning(stack: AlicloudStack) -> None:
    stack.configure(ttl="0")
    done = stack.preview()
    assert "autoReleaseTime" not in done.one(INSTANCE).values
    assert any("ttl 0" in text for text in done.messages("WARNING"))


@pytest.mark.slow
def test_no_stock_is_reported_with_its_code_and_the_next_zone_works(stack: AlicloudStack) -> None:
    stack.configure(placement=f"{TYPE}/cn-hangzhou-b")
    stack.cloud.sold_out.add((TYPE, "cn-hangzhou-b"))
    assert "OperationDenied.NoStock" in stack.failed()
    assert not stack.cloud.find("/instance:Instance")
    stack.configure(placement=f"{TYPE}/cn-hangzhou-h")
    assert stack.up().values["zone"] == "cn-hangzhou-h"


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"endpoint": "intranet", "allowed_cidrs": ""}, marks=pytest.mark.slow)]
)
def test_a_forbidden_public_endpoint_of_oss_fails_before_anything_is_bought(
    tmp_path: Path, options: dict[str, str]
) -> None:
    stack = make_stack(tmp_path, AlicloudCloud(is_public_oss_forbidden=True), **options)
    assert "PublicEndpointForbidden" in stack.failed()
    assert not [item.type for item in stack.cloud.find() if item.type.endswith(("Instance", "Address", "NatGateway"))]


@pytest.mark.parametrize(
    "options",
    [{"weights_disk_gib": "60"}, pytest.param({"endpoint": "intranet", "allowed_cidrs": ""}, marks=pytest.mark.slow)],
)
def test_destroy_empties_the_account(stack: AlicloudStack, options: dict[str, str]) -> None:
    stack.configure(**options)
    stack.up()
    (bucket,) = stack.cloud.find("/bucket:Bucket")
    stack.cloud.plant("oss/bucketObject:BucketObject", {"bucket": bucket.id, "key": "status/status.json"})
    stack.destroy()
    assert not stack.cloud.things
