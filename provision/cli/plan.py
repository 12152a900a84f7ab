"""`deployctl plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from provision.cli.host_options import HostIdentityOption, HostKeyOption, refuse_without_host
from provision.cli.output import JsonFlag, emit_json, say
from provision.cli.spec_flags import Given, spec_options
from provision.errors import PlanError

if TYPE_CHECKING:
    from provision.planning import Plan
    from provision.spec import DeploymentSpec

app = typer.Typer(add_completion=False)


@app.command()
@spec_options
def plan(
    given: Given, host_key: HostKeyOption = None, identity: HostIdentityOption = None, json: JsonFlag = False
) -> None:
    """Show whether the model fits, how it would run and what it costs; starts nothing.

    Needs no account and, for the models of the catalog, no network. Ends with exit code 4 when the model
    does not fit; then the cheapest instance types that do are listed.
    """
    resolved = given.resolve()
    refuse_without_host(resolved.spec, host_key, identity)
    made = plan_for(resolved.spec, host_key, identity)
    if json:
        emit_json(_answer(resolved.spec, made))
    else:
        _print(made)
        _say_next(resolved.spec, made)
    if not made.fits:
        raise typer.Exit(PlanError.exit_code)


def plan_for(spec: DeploymentSpec, host_key: str | None = None, identity: Path | None = None) -> Plan:
    """The plan with this machine's facts where the spec is local.

    Raises PlanError when the model's shape cannot be read, ConnectionFailedError and UsageError for a host.
    """
    from provision.machine import detect_local
    from provision.model_source import model_spec_for
    from provision.planning import plan_deployment
    from provision.state import cache_root

    if spec.cloud == "host":
        from provision.cli.host_up import look_at_host, plan_on

        return plan_on(spec, look_at_host(spec, host_key, identity), running=False)
    return plan_deployment(spec, model_spec_for(spec), None if spec.is_cloud else detect_local(cache_root()))


def refusal(spec: DeploymentSpec) -> str | None:
    """Why `up` would refuse with "not yet" what can be planned, one line per reason; None when it would not."""
    from provision.planning import not_yet

    return "\n".join(f"{item.path}: {item.reason}" for item in not_yet(spec)) or None


def _answer(spec: DeploymentSpec, made: Plan) -> dict[str, object]:
    from dataclasses import asdict

    from provision.cli.plan_view import plan_json
    from provision.planning import not_yet

    return plan_json(made) | {"not_yet": [asdict(item) for item in not_yet(spec)]}


def _print(made: Plan) -> None:
    from rich.console import Console

    from provision.cli.plan_view import plan_table

    Console(highlight=False).print(plan_table(made))


def _say_next(spec: DeploymentSpec, made: Plan) -> None:
    if not made.fits and made.alternatives:
        chosen = made.alternatives[0].instance_type
        say(f"\nnext: {_command(spec, spec.cloud)} --instance-type {chosen}")
    elif not made.fits and spec.cloud == "local" and spec.model_ref.kind == "hf":
        say(f"\nnext: {_command(spec, 'aws')}")
    elif reason := refusal(spec):
        say("\nThe plan is real, but this version cannot start it yet:\n" + reason)
    elif made.fits:
        say("\nnext: deployctl up with the same options")


def _command(spec: DeploymentSpec, cloud: str) -> str:
    length = f" --max-model-len {spec.max_model_len}" if spec.max_model_len else ""
    return f"deployctl plan --cloud {cloud} --model {spec.model.removeprefix('hf:')}{length}"
