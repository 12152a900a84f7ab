"""What the machine, the timer and the mailbox's bucket allow on AWS, read from the policies themselves."""

from __future__ import annotations

import json
from typing import Any

from provision.model_ref import parse_model
from stacks.aws_policies import instance_policy, terminate_policy, tls_only_policy, trust_policy

BUCKET = "deployctl-chat-mailbox-0a1b2c3d"
MAILBOX = f"arn:aws:s3:::{BUCKET}"
INSTANCE = "arn:aws:ec2:eu-west-1:123456789012:instance/i-0a1b2c3d"


def statements(policy: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(policy)["Statement"]
    return found


def machine(model: str = "hf:Qwen/Qwen2.5-7B-Instruct") -> dict[str, dict[str, Any]]:
    """Statements of the machine's role by their (first) action and resource."""
    policy = instance_policy("chat", BUCKET, "eu-west-1", parse_model(model))
    return {f"{item['Action']} {item['Resource'][0]}": item for item in statements(policy)}


def test_the_machine_reads_what_the_user_writes_and_writes_its_status_only() -> None:
    found = machine()
    read = found[f"s3:GetObject {MAILBOX}/release/*"]["Resource"]
    assert read == [f"{MAILBOX}/release/*", f"{MAILBOX}/secrets/*", f"{MAILBOX}/bundle/*"]
    assert found[f"s3:PutObject {MAILBOX}/status/*"]["Resource"] == [f"{MAILBOX}/status/*"]


def test_the_machine_may_end_only_what_carries_its_deployments_tag() -> None:
    (end,) = (item for key, item in machine().items() if "TerminateInstances" in key)
    assert end["Action"] == ["ec2:StopInstances", "ec2:TerminateInstances"]
    assert end["Condition"] == {"StringEquals": {"aws:ResourceTag/deployctl": "chat"}}


def test_the_machine_has_no_right_beside_these() -> None:
    reading = [f"s3:GetObject {MAILBOX}/release/*", f"s3:ListBucket {MAILBOX}"]
    ending = "['ec2:StopInstances', 'ec2:TerminateInstances'] arn:aws:ec2:eu-west-1:*:instance/*"
    assert sorted(machine()) == sorted([*reading, f"s3:PutObject {MAILBOX}/status/*", ending])


def test_of_a_models_bucket_only_its_prefix_is_read() -> None:
    found = machine("s3://models/qwen/v1")
    assert found["s3:GetObject arn:aws:s3:::models/qwen/v1/*"]["Resource"] == ["arn:aws:s3:::models/qwen/v1/*"]
    assert found["s3:ListBucket arn:aws:s3:::models"]["Condition"] == {"StringLike": {"s3:prefix": "qwen/v1/*"}}


def test_a_model_that_is_a_whole_bucket_is_read_whole() -> None:
    assert "s3:GetObject arn:aws:s3:::models/*" in machine("s3://models")


def test_the_timer_deletes_one_machine() -> None:
    assert statements(terminate_policy(INSTANCE)) == [
        {"Effect": "Allow", "Action": "ec2:TerminateInstances", "Resource": [INSTANCE]}
    ]


def test_a_role_is_taken_by_its_service_on_behalf_of_its_own_schedules_only() -> None:
    (trust,) = statements(trust_policy("scheduler.amazonaws.com", "arn:aws:scheduler:eu-west-1:1:schedule-group/x"))
    assert trust["Principal"] == {"Service": "scheduler.amazonaws.com"}
    assert trust["Condition"]["ArnEquals"]["aws:SourceArn"].endswith("schedule-group/x")


def test_the_mailbox_takes_tls_only() -> None:
    (rule,) = statements(tls_only_policy(BUCKET))
    assert (rule["Effect"], rule["Condition"]) == ("Deny", {"Bool": {"aws:SecureTransport": "false"}})
    assert rule["Resource"] == [MAILBOX, f"{MAILBOX}/*"]
