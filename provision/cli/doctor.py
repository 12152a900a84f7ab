"""`deployctl doctor`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli.names import NameArgument, NameOption, find_target
from provision.cli.output import JsonFlag, emit, emit_json, say
from provision.errors import (
    CapacityError,
    CloudError,
    DeployctlError,
    EndpointError,
    FailedError,
    RolledBackError,
)

if TYPE_CHECKING:
    from provision.doctor.evidence import Evidence
    from provision.doctor.rule import Finding
    from provision.target import Deployed

app = typer.Typer(add_completion=False)
EXPLAINED = (FailedError, RolledBackError, EndpointError, CloudError, CapacityError)  # what happened to a deployment


@app.command()
def doctor(
    name: NameArgument = None,
    name_option: NameOption = None,
    no_ssh: Annotated[bool, typer.Option("--no-ssh", help="Do not log in to the machine.")] = False,
    json: JsonFlag = False,
) -> None:
    """Find what is wrong with a deployment: the cause in one line, and what to type.

    Looks at status, logs, kernel messages, GPU, disk, memory, clock, endpoint, firewall and certificate. Exit codes: 0
    nothing found, 9 something is wrong.
    """
    from provision.doctor.collect import collect
    from provision.doctor.rules import diagnose

    evidence = collect(find_target(name, name_option), deep=not no_ssh)
    findings = diagnose(evidence)
    if json:
        found = [dataclasses.asdict(item) for item in findings]
        emit_json({"name": evidence.name, "state": evidence.life, "findings": found, "unknown": evidence.unknown})
    else:
        for text in evidence.unknown:
            say(f"not known: {text}")
        emit("\n".join(describe(evidence, findings)))
    if findings or evidence.life == "failed":
        raise typer.Exit(FailedError.exit_code)


def describe(evidence: Evidence, findings: tuple[Finding, ...]) -> list[str]:
    """Cause, proof and fix of each finding, the likeliest first."""
    if not findings:
        lines = [f"{evidence.name} is {evidence.life}; no rule knows anything wrong with it"]
        if evidence.error is not None:
            lines.append(f"  its own last words: {evidence.error}")
        return lines if evidence.is_ready else [*lines, f"  next: deployctl logs {evidence.name} --since 30m"]
    lines = [f"{evidence.name} is {evidence.life}; {len(findings)} {'cause' if len(findings) == 1 else 'causes'} found"]
    for number, item in enumerate(findings, 1):
        lines += [f"{number}. {item.cause}", f"   seen: {item.proof}", f"   next: {item.fix}"]
    return lines


@contextmanager
def explaining(target: Deployed) -> Iterator[None]:
    """Says what the doctor makes of a failure that ends a command, before the failure itself is shown."""
    try:
        yield
    except EXPLAINED as error:
        from provision.doctor.collect import top_finding

        try:
            found = top_finding(target, error)
        except (DeployctlError, OSError):
            found = None  # the error itself is what must be told
        if found is not None:
            say(f"doctor: {found.cause}")
            say(f"  {found.fix}")
        raise
