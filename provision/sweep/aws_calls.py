"""Deleting API calls of AWS as data, as lines for the `aws` command, and executed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from provision.sweep.model import GLOBAL, Argument, Call, EmptyBucket, Leftover, Step

# Nothing came, or something that is no answer of AWS: a page of a proxy on the way.
NO_ANSWER = (BotoCoreError, ResponseParserError)
COMMAND_OF = {"s3": "s3api"}
BATCH = 1000  # objects that one call deletes at most
GONE = r"NotFound|NoSuch"
HOME_REGION = "us-east-1"  # IAM has none, and boto3 wants one all the same


def call(
    service: str, operation: str, arguments: Iterable[tuple[str, Argument]], region: str | None, *, then: str = ""
) -> Call:
    """`operation` as boto3 spells it (delete_vpc), arguments as the API does (VpcId). `then`: what a shell has to
    wait for (`aws ec2 wait …`, with the same arguments)."""
    given = tuple(arguments)
    options = [word for key, value in given for word in _option(key, value)]
    options += ["--region", region] if region else []
    command = shlex.join(["aws", COMMAND_OF.get(service, service), operation.replace("_", "-"), *options])
    if then:
        options = ["--nat-gateway-ids" if word == "--nat-gateway-id" else word for word in options]
        command += " && " + shlex.join(["aws", service, "wait", then, *options])
    return Call(service, operation, given, command)


def empty_bucket(bucket: str, region: str) -> EmptyBucket:
    return EmptyBucket(bucket, shlex.join(["aws", "s3", "rm", f"s3://{bucket}", "--recursive", "--region", region]))


def _option(key: str, value: Argument) -> Iterator[str]:
    yield "--" + re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", key).lower()
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        yield from value


def delete(leftover: Leftover, session: Any) -> str | None:
    """Executes the steps. Returns why it did not work, None when it did or when the thing was gone already."""
    region = None if leftover.region == GLOBAL else leftover.region
    for step in leftover.steps:
        try:
            _execute(step, session, region or session.region_name or HOME_REGION)
        except ClientError as error:
            found = error.response.get("Error", {})
            if not re.search(GONE, str(found.get("Code", ""))):
                return f"{found.get('Code')}: {found.get('Message')}"
        except NO_ANSWER as error:
            return str(error)
    return None


def _execute(step: Step, session: Any, region: str) -> None:
    if isinstance(step, EmptyBucket):
        _empty(session.client("s3", region_name=region), step.bucket)
        return
    arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in step.arguments}
    getattr(session.client(step.service, region_name=region), step.operation)(**arguments)


def _empty(client: Any, bucket: str) -> None:
    for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket):
        found = [
            {"Key": item["Key"], "VersionId": item["VersionId"]}
            for item in (*page.get("Versions", []), *page.get("DeleteMarkers", []))
        ]
        for start in range(0, len(found), BATCH):
            client.delete_objects(Bucket=bucket, Delete={"Objects": found[start : start + BATCH], "Quiet": True})
