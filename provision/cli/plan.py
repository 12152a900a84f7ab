"""`deployctl plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from provision.cli.output import JsonFlag, emit_json
from provision.cli.spec_flags import Given, spec_options

if TYPE_CHECKING:
    from provision.planning import Plan
    from provision.spec import DeploymentSpec

app = typer.Typer(add_completion=False)


@app.command()
@spec_options
def plan(given: Given, json: JsonFlag = False) -> None:
    """Show whether the model fits, how it would run and what it costs; starts nothing.

    Needs no account and, for the models of the catalog, no network. Ends with exit code 4 when the model
    does not fit; then the cheapest instance types that do are listed.
    """
    resolved = given.resolve()
    made = plan_for(resolved.spec)
    if json:
        emit_json(_answer(resolved.spec, made))
    else:
        _print(made)
    if not made.fits:
        raise typer.Exit(_exit_code())
    if not json:
        _say_next(resolved.spec, made)


def plan_for(spec: DeploymentSpec) -> Plan:
    """The plan with this machine's facts where the spec is local.

    Raises PlanError when the model's shape cannot be read, NotYetError for hosts.
    """
    from provision.errors import NotYetError
    from provision.machine import detect_local
    from provision.model_source import model_spec_for
    from provision.planning import plan_deployment

    if spec.cloud == "host":
        raise NotYetError(
            f"{spec.host} cannot be planned yet",
            why="machines over SSH are not looked at by this version",
            next_command=f"deployctl plan --model {spec.model}",
        )
    return plan_deployment(spec, model_spec_for(spec), None if spec.is_cloud else detect_local())


def refusal(spec: DeploymentSpec, made: Plan) -> str | None:
    """Why `up` would refuse the plan with "not yet", one line per reason; None when it would not."""
    from provision.planning import not_yet

    return "\n".join(f"{item.path}: {item.reason}" for item in not_yet(spec, made)) or None


def _answer(spec: DeploymentSpec, made: Plan) -> dict[str, object]:
    from dataclasses import asdict

    from provision.cli.plan_view import plan_json
    from provision.planning import not_yet

    return plan_json(made) | {"not_yet": [asdict(item) for item in not_yet(spec, made)]}


def _print(made: Plan) -> None:
    from rich.console import Console

    from provision.cli.plan_view import plan_table

    Console(highlight=False).print(plan_table(made))


def _say_next(spec: DeploymentSpec, made: Plan) -> None:
    from provision.cli.output import say

    if reason := refusal(spec, made):
        say("\nThe plan is real, but this version cannot start it yet:\n" + reason)
        return
    say("\nnext: deployctl up with the same options")


def _exit_code() -> int:
    from provision.errors import PlanError

    return PlanError.exit_code
