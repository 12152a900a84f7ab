"""IAM policies of a deployment on AWS, as JSON. Pure: what the VM and the timer may do, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from provision.model_ref import ModelRef
from provision.naming import TAG

VERSION = "2012-10-17"
SSM_CORE = "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"
READABLE = ("release/*", "secrets/*", "bundle/*")
WRITABLE = ("status/*",)


def trust_policy(service: str, source_arn: str | None = None) -> str:
    """Lets one AWS service take the role; with `source_arn` only on behalf of that resource."""
    condition = {"ArnEquals": {"aws:SourceArn": source_arn}} if source_arn else None
    return _policy([_allow("sts:AssumeRole", principal={"Service": service}, condition=condition)])


def instance_policy(deployment: str, bucket: str, region: str, model: ModelRef) -> str:
    """What the VM may do: read its releases and secrets, write its status, read the model's prefix, end itself.

    Listing is allowed because S3 answers 403 for a missing object to those who may not list, and 404 to those who may.
    IAM cannot name "this very instance" in a role that is made before it; the deployment's tag does.
    """
    mailbox = f"arn:aws:s3:::{bucket}"
    statements = [
        _allow("s3:GetObject", [f"{mailbox}/{pattern}" for pattern in READABLE]),
        _allow("s3:PutObject", [f"{mailbox}/{pattern}" for pattern in WRITABLE]),
        _allow("s3:ListBucket", [mailbox]),
        _allow(
            ["ec2:StopInstances", "ec2:TerminateInstances"],
            [f"arn:aws:ec2:{region}:*:instance/*"],
            condition={"StringEquals": {f"aws:ResourceTag/{TAG}": deployment}},
        ),
    ]
    if model.kind == "s3":
        statements += _read_prefix(*model.location.partition("/")[::2])
    return _policy(statements)


def terminate_policy(instance_arn: str) -> str:
    """What the timer may do: delete this one machine."""
    return _policy([_allow("ec2:TerminateInstances", [instance_arn])])


def tls_only_policy(bucket: str) -> str:
    """Bucket policy: nobody reads or writes the mailbox over plain HTTP."""
    arn = f"arn:aws:s3:::{bucket}"
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [arn, f"{arn}/*"],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
    return _policy([statement])


def _read_prefix(bucket: str, prefix: str) -> list[dict[str, Any]]:
    arn, pattern = f"arn:aws:s3:::{bucket}", f"{prefix.rstrip('/')}/*" if prefix else "*"
    listing = {"StringLike": {"s3:prefix": pattern}}
    return [_allow("s3:GetObject", [f"{arn}/{pattern}"]), _allow("s3:ListBucket", [arn], condition=listing)]


def _allow(
    action: str | Sequence[str],
    resource: Sequence[str] = (),
    *,
    principal: Mapping[str, str] | None = None,
    condition: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    statement: dict[str, Any] = {"Effect": "Allow", "Action": action}
    if resource:
        statement["Resource"] = list(resource)
    if principal:
        statement["Principal"] = dict(principal)
    if condition:
        statement["Condition"] = dict(condition)
    return statement


def _policy(statements: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps({"Version": VERSION, "Statement": list(statements)})
