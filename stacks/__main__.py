"""`pulumi up`: stack config → spec → plan → preflight → one GPU VM → its endpoint answers → exports."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pulumi

from provision.errors import DeployctlError
from stacks.component import make_component, make_provider
from stacks.order import asked, explain, plan_to_start, read_config, take_wheel
from stacks.preflight import run_preflight
from stacks.report import export_everything, wait_ready
from stacks.vm import GpuVmArgs


def main(environ: Mapping[str, str]) -> None:
    """Raises pulumi.RunError with everything that is wrong, in words for the user."""
    try:
        spec, settings = read_config(environ)
        plan = plan_to_start(spec, settings)
        wheel = take_wheel(spec)
        provider = make_provider(spec)
        found = run_preflight(spec, plan, settings, provider=provider)
        args = GpuVmArgs(spec, plan, settings, found, wheel)
        vm = make_component(args, provider)
        export_everything(args, vm.outputs, wait_ready(args, vm.outputs, vm))
        pulumi.export("asked", asked(environ))
    except DeployctlError as error:
        raise pulumi.RunError(explain(error)) from None


if __name__ == "__main__":
    main(os.environ)
