"""`deployctl permissions`."""

from __future__ import annotations

import dataclasses
import json as json_text
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli.output import JsonFlag, emit_json, say
from provision.cli.spec_flags import Given, spec_options

if TYPE_CHECKING:
    from provision.permissions import Policy

app = typer.Typer(add_completion=False)


class CloudName(StrEnum):
    """The clouds that have permissions."""

    aws = "aws"
    alicloud = "alicloud"


@app.command()
@spec_options
def permissions(
    given: Given,
    where: Annotated[CloudName, typer.Argument(metavar="CLOUD", help="aws (IAM) or alicloud (RAM).")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Write one file per policy into FOLDER.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Print the smallest policy with which this spec can be deployed, watched and taken down. Asks no cloud.

    Takes the same spec as `plan`: another region, spot, an own VPC or intranet need other rights. A policy may have
    6,144 characters; what is longer comes as several, all of which are needed.
    """
    from provision.permissions import policies

    spec = dataclasses.replace(given, flags={**given.flags, "cloud": where.value}).resolve().spec
    made = policies(spec)
    if out is not None:
        write(made, out)
    elif json:
        emit_json([{"name": policy.name, "size": policy.size, "document": policy.document} for policy in made])
    else:
        emit_json(made[0].document if len(made) == 1 else [policy.document for policy in made])
    explain(made, where.value, out)


def write(made: tuple[Policy, ...], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for policy in made:
        (folder / f"{policy.name}.json").write_text(json_text.dumps(policy.document, indent=2) + "\n")


def explain(made: tuple[Policy, ...], cloud: str, folder: Path | None) -> None:
    """On stderr: what each statement is for (RAM's have no names), and how the policies are made."""
    for policy in made:
        say(f"{policy.name}: {policy.size} of 6144 characters")
        for statement in policy.statements:
            say(f"  {statement.sid}: {len(statement.actions)} actions")
    if len(made) > 1 and folder is None:
        say(f"{len(made)} policies, printed as one JSON list; all are needed. --out FOLDER writes one file for each")
    for policy in made:
        say(create_command(policy, cloud, folder or Path(".")))


def create_command(policy: Policy, cloud: str, folder: Path) -> str:
    path = folder / f"{policy.name}.json"
    if cloud == "aws":
        return f"aws iam create-policy --policy-name {policy.name} --policy-document file://{path}"
    return f'aliyun ram CreatePolicy --PolicyName {policy.name} --PolicyDocument "$(cat {path})"'
