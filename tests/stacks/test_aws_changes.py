"""What changes of the config do to a deployment on AWS that exists, and what `destroy` leaves: nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.sweep import find_leftovers
from runtime.deployment import decode_deployment
from runtime.mailbox import decode_current
from tests.lab import moto_answers
from tests.lab.aws_stack import NAME, REGION, AwsStack, aws_account, make_stack
from tests.lab.pulumi_model import Run
from tests.lab.small_wheel import make_small_wheel

INSTANCE = "aws:ec2/instance:Instance"
RELEASE = ["chat-current", "chat-deployment", "chat-wheel"]
OTHER_IMAGE = "ami-12c6146b"  # one of moto's own


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[AwsStack]:
    with aws_account():
        yield make_stack(tmp_path)


def changed(run: Run) -> list[str]:
    return sorted({step.name for step in run.steps if step.operation != "same"})


def test_another_model_reaches_the_machine_through_the_mailbox_alone(stack: AwsStack) -> None:
    before = stack.up().values
    stack.configure(model="hf:Qwen/Qwen2.5-1.5B-Instruct")
    after = stack.up()
    assert changed(after) == RELEASE
    assert after.values["instance_id"] == before["instance_id"]
    found = stack.objects(before["mailbox"])
    current = decode_current(found["release/current.json"])
    assert decode_deployment(found[current.deployment]).model.source == "hf:Qwen/Qwen2.5-1.5B-Instruct"
    assert not [key for key in found if before["release"] in key]


@pytest.mark.slow
def test_another_wheel_is_a_new_release_on_the_same_machine(stack: AwsStack, tmp_path: Path) -> None:
    stack.up()
    (tmp_path / "other").mkdir()
    stack.configure(runtime_wheel=str(make_small_wheel(tmp_path / "other", b"# changed")))
    assert changed(stack.up()) == RELEASE


@pytest.mark.slow
def test_a_newer_image_does_not_replace_the_machine(stack: AwsStack, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stack.up().values
    monkeypatch.setattr(moto_answers, "PARAMETER_IMAGE", OTHER_IMAGE)
    after = stack.up()
    assert changed(after) == []
    assert after.values["image"] == before["image"] != OTHER_IMAGE


@pytest.mark.slow
def test_another_instance_type_keeps_machine_and_address(stack: AwsStack) -> None:
    before = stack.up().values
    stack.configure(instance_type="g5.2xlarge")
    after = stack.up()
    assert after.names("update") == ["chat-machine"]
    assert after.names("replace") == []
    assert stack.instance()["InstanceType"] == "g5.2xlarge"
    assert after.values["public_ip"] == before["public_ip"]


@pytest.mark.slow
def test_a_larger_disk_that_the_user_asks_for_grows_in_place(stack: AwsStack) -> None:
    stack.configure(disk_gib="150")
    before = stack.up().values
    stack.configure(disk_gib="200")
    after = stack.up()
    assert changed(after) == ["chat-machine"]
    assert after.values["instance_id"] == before["instance_id"]
    assert [disk["Size"] for disk in stack.ec2.describe_volumes()["Volumes"]] == [200]


@pytest.mark.slow
def test_another_caller_changes_the_rules_alone(stack: AwsStack) -> None:
    stack.up()
    stack.configure(allowed_cidrs="203.0.113.0/24")
    assert changed(stack.up()) == ["chat-endpoint-0", "chat-ssh-0"]
    assert stack.ingress() == {(8000, "203.0.113.0/24"), (22, "203.0.113.0/24")}


@pytest.mark.slow
def test_a_longer_life_changes_timer_and_mailbox_alone(stack: AwsStack) -> None:
    expires_at = stack.up().values["expires_at"]
    stack.configure(expires_at=str(expires_at + 3600))
    after = stack.up()
    assert sorted(set(changed(after)) - {"chat-expiry"}) == ["chat-life", "chat-ttl"]
    assert after.values["expires_at"] == expires_at + 3600


@pytest.mark.slow
def test_another_zone_makes_the_machine_anew_and_keeps_its_public_address(stack: AwsStack) -> None:
    before = stack.up().values
    stack.configure(placement="g5.xlarge/eu-west-1b")
    after = stack.up()
    assert after.values["zone"] == "eu-west-1b" != before["zone"]
    assert after.values["instance_id"] != before["instance_id"]
    assert after.values["public_ip"] == before["public_ip"]
    assert after.values["instance_id"] == stack.instance()["InstanceId"]


@pytest.mark.slow
def test_a_machine_whose_place_nobody_named_stays_where_it_is(stack: AwsStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS may list its zones in another order tomorrow."""
    before = stack.up().values
    offers = moto_answers.ANSWERS["aws:ec2/getInstanceTypeOfferings:getInstanceTypeOfferings"]
    monkeypatch.setitem(
        moto_answers.ANSWERS,
        "aws:ec2/getInstanceTypeOfferings:getInstanceTypeOfferings",
        lambda clients, args: {**(found := offers(clients, args)), "locations": sorted(found["locations"])[1:]},
    )
    stack.configure(zones="")
    assert stack.up().values["instance_id"] == before["instance_id"]


@pytest.mark.slow
def test_a_lost_place_is_tried_in_another_zone_with_the_same_network(stack: AwsStack) -> None:
    stack.cloud.failures[INSTANCE] = "InsufficientInstanceCapacity: none of g5.xlarge"
    assert "InsufficientInstanceCapacity" in stack.engine.up().explain()
    stack.cloud.failures.clear()
    stack.configure(placement="g5.xlarge/eu-west-1c")
    after = stack.up()
    assert after.values["zone"] == "eu-west-1c"
    assert "chat-vpc" in after.names("same")


@pytest.mark.slow
def test_destroy_leaves_nothing_in_the_account(stack: AwsStack) -> None:
    stack.configure(weights_disk_gib="100")
    made = stack.up()
    stack.cloud.clients.s3.put_object(Bucket=made.values["mailbox"], Key="status/status.json", Body=b"{}")
    assert find_leftovers("aws", REGION, NAME).found
    stack.destroy()
    swept = find_leftovers("aws", REGION, NAME)
    assert [item.kind for item in swept.found] == []
    assert not swept.unknown


@pytest.mark.slow
def test_what_a_broken_creation_made_can_be_destroyed(stack: AwsStack) -> None:
    stack.cloud.failures[INSTANCE] = "InsufficientInstanceCapacity: none of g5.xlarge"
    assert not stack.engine.up().succeeded
    stack.destroy()
    assert not find_leftovers("aws", REGION, NAME).found
