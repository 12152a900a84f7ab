"""Stopped and woken by the stack's config, on both clouds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.mailbox import decode_life
from tests.lab.alicloud_stack import AlicloudStack
from tests.lab.alicloud_stack import make_stack as make_alicloud_stack
from tests.lab.aws_stack import AwsStack, aws_account
from tests.lab.aws_stack import make_stack as make_aws_stack
from tests.lab.pulumi_model import Run

WOKEN_AT = "1790000000"


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[AwsStack]:
    with aws_account():
        yield make_aws_stack(tmp_path)


@pytest.fixture
def alicloud(tmp_path: Path) -> AlicloudStack:
    return make_alicloud_stack(tmp_path)


def changed(run: Run) -> list[str]:
    return sorted({step.name for step in run.steps if step.operation != "same"})


@pytest.mark.slow
def test_on_aws_a_stop_switches_off_the_machine_and_touches_nothing_else(aws: AwsStack) -> None:
    before = aws.up().values
    aws.configure(stopped="true")
    after = aws.up()
    assert changed(after) == ["chat-stop"]
    assert aws.instance()["State"]["Name"] == "stopped"
    assert after.values["stopped"] is True
    assert after.values["public_ip"] == before["public_ip"]

    aws.configure(stopped="", woken_at=WOKEN_AT)
    woken = aws.up()
    assert changed(woken) == ["chat-life", "chat-stop", f"chat-wake-{WOKEN_AT}"]
    assert aws.instance()["State"]["Name"] == "running"
    assert woken.values["instance_id"] == before["instance_id"]
    life = decode_life(aws.objects(woken.values["mailbox"])["release/life.json"])
    assert life.woken_at == int(WOKEN_AT)
    aws.destroy()


@pytest.mark.slow
def test_on_aws_a_machine_that_stopped_itself_is_woken_each_time(aws: AwsStack) -> None:
    aws.up()
    for woken_at in ("1790000000", "1790003600"):
        aws.ec2.stop_instances(InstanceIds=[aws.instance()["InstanceId"]])
        aws.configure(woken_at=woken_at)
        aws.up()
        assert aws.instance()["State"]["Name"] == "running"


def test_on_alibaba_cloud_a_stop_ends_the_charging_of_the_machine(alicloud: AlicloudStack) -> None:
    alicloud.up()
    alicloud.configure(stopped="true")
    assert changed(alicloud.up()) == ["bot-machine"]
    machine = alicloud.machine()
    assert (machine.values["status"], machine.values["stoppedMode"]) == ("Stopped", "StopCharging")

    alicloud.configure(stopped="", woken_at=WOKEN_AT)
    assert changed(alicloud.up()) == ["bot-life", "bot-machine"]
    assert alicloud.machine().values["status"] == "Running"


@pytest.mark.slow
def test_on_alibaba_cloud_a_machine_without_stock_stays_stopped(alicloud: AlicloudStack) -> None:
    values = alicloud.up().values
    alicloud.configure(stopped="true")
    alicloud.up()
    alicloud.cloud.sold_out.add((values["instance_type"], values["zone"]))
    alicloud.configure(stopped="", woken_at=WOKEN_AT)
    assert "OperationDenied.NoStock" in alicloud.failed()
    assert alicloud.machine().values["status"] == "Stopped"
