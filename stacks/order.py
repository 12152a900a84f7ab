"""What is ordered: the stack's config as spec and settings, the plan that it leads to, and the wheel to run."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pulumi

from provision.agreement import asked_text
from provision.config import resolve
from provision.errors import DeployctlError, NotYetError, PlanError
from provision.model_source import model_spec_for
from provision.planning import Plan, not_yet, plan_deployment
from provision.spec import DeploymentSpec, Problem, SpecError
from provision.stack_settings import SETTINGS, StackSettings, split_config
from provision.wheel import Wheel, runtime_wheel
from stacks.once import absolute

CLOUDS = ("aws", "alicloud")


def asked(environ: Mapping[str, str]) -> pulumi.Output[str]:
    """The stack's config as other laptops compare theirs with; secret, because it holds digests of secrets."""
    return pulumi.Output.secret(asked_text(json.loads(environ.get("PULUMI_CONFIG", "{}"))))


def read_config(environ: Mapping[str, str]) -> tuple[DeploymentSpec, StackSettings]:
    """Spec and settings in the stack's config; the stack's name is the deployment's. Raises SpecError.

    Pulumi's Python host hands a program the stack's whole config as JSON in PULUMI_CONFIG; read there, a misspelt key
    is an error and not a key that nobody asks for.
    """
    config: dict[str, str] = json.loads(environ.get("PULUMI_CONFIG", "{}"))
    problems: list[Problem] = []
    settings = StackSettings()
    try:
        values, settings = split_config(config)
    except SpecError as error:
        values, _ = split_config({key: text for key, text in config.items() if key not in SETTINGS})
        problems += error.problems
    try:
        spec = resolve({"name": environ["PULUMI_STACK"].rpartition("/")[2]}, pulumi=values, env=environ).spec
        if spec.cloud not in CLOUDS:
            reason = f"{spec.cloud} has no cloud resources for Pulumi to make"
            problems.append(Problem("cloud", reason, CLOUDS[0]))
    except SpecError as error:
        problems += error.problems
    if problems:
        raise SpecError(problems)
    return spec, settings


def plan_to_start(spec: DeploymentSpec, settings: StackSettings) -> Plan:
    """The plan for the type that was placed, else for the spec's first. Raises PlanError, NotYetError."""
    if settings.placement is not None:
        spec = spec.model_copy(update={"instance_type": (settings.placement.instance_type,)})
    plan = plan_deployment(spec, model_spec_for(spec))
    if not plan.fits:
        others = [f"{item.instance_type} ({item.gpus}) would fit" for item in plan.alternatives]
        why = "\n".join([*plan.reasons, *others])
        raise PlanError(f"{spec.model} does not fit {plan.instance_type}", why=why, next_command="deployctl plan")
    if problems := not_yet(spec):
        why = "\n".join(map(str, problems))
        raise NotYetError("this version can plan this, but not start it", why=why, next_command="deployctl plan")
    return plan


def take_wheel(spec: DeploymentSpec) -> Wheel:
    """The runtime's wheel: the spec's own, else this version's. Raises SpecError, MissingPartError."""
    return runtime_wheel(str(absolute(spec.runtime_wheel)) if spec.runtime_wheel else None)


def explain(error: DeployctlError) -> str:
    """What, why and the next command, as lines for Pulumi's list of errors."""
    parts = (error.what, error.why, f"next: {error.next_command}" if error.next_command else None)
    return "\n".join(part for part in parts if part)
