"""RAM policies of a deployment on Alibaba Cloud, as JSON. Pure: what the VM may do, and nothing else.

Conditions on the tag of an ECS instance are used so in public code; that StopInstance honours them has not yet been
seen on a real account. A policy may have 6,144 bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from provision.model_ref import ModelRef
from provision.naming import TAG

VERSION = "1"
MAX_BYTES = 6144
READABLE = ("release/*", "secrets/*", "bundle/*")
WRITABLE = ("status/*",)


def trust_policy() -> str:
    """Lets ECS instances take the role."""
    return _policy([{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": ["ecs.aliyuncs.com"]}}])


def machine_policy(deployment: str, bucket: str | None, region: str, model: ModelRef) -> str:
    """What the VM may do: read its releases and secrets, write its status, read the model's prefix, stop itself.

    `bucket` None: its mailbox is a folder of its own.

    RAM cannot name "this very instance" in a role that is made before it; the deployment's tag does.
    """
    statements = [] if bucket is None else _mailbox(bucket)
    statements.append(
        _allow(
            ["ecs:StopInstance", "ecs:StopInstances"],
            [f"acs:ecs:{region}:*:instance/*"],
            condition={"StringEquals": {f"acs:ResourceTag/{TAG}": [deployment]}},
        )
    )
    if model.kind == "oss":
        name, _, prefix = model.location.partition("/")
        pattern = f"{prefix.rstrip('/')}/*" if prefix else "*"
        statements += [_allow("oss:GetObject", [_object(name, pattern)]), _listing(name, (pattern,))]
    return _policy(statements)


def _mailbox(bucket: str) -> list[dict[str, Any]]:
    return [
        _allow("oss:GetObject", [_object(bucket, pattern) for pattern in READABLE]),
        _allow(["oss:PutObject", "oss:AbortMultipartUpload"], [_object(bucket, pattern) for pattern in WRITABLE]),
        _listing(bucket, (*READABLE, *WRITABLE)),
    ]


def _object(bucket: str, pattern: str) -> str:
    return f"acs:oss:*:*:{bucket}/{pattern}"


def _listing(bucket: str, patterns: Sequence[str]) -> dict[str, Any]:
    return _allow(
        "oss:ListObjects", [f"acs:oss:*:*:{bucket}"], condition={"StringLike": {"oss:Prefix": list(patterns)}}
    )


def _allow(
    action: str | Sequence[str], resource: Sequence[str], *, condition: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    statement: dict[str, Any] = {"Effect": "Allow", "Action": action, "Resource": list(resource)}
    return statement | ({"Condition": dict(condition)} if condition else {})


def _policy(statements: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps({"Version": VERSION, "Statement": list(statements)})
