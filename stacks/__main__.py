"""`pulumi up`: stack config → spec → plan → resources. There are no resources yet, and it says so first."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from provision.config import resolve
from provision.errors import NotYetError
from provision.spec import DeploymentSpec


def read_spec(environ: Mapping[str, str]) -> DeploymentSpec:
    """The spec in the stack's config; the stack's name is the deployment's. Raises provision.spec.SpecError.

    Pulumi's Python host hands a program the stack's whole config as JSON in PULUMI_CONFIG; read there, a
    misspelt key is an error and not a key that nobody asks for.
    """
    config: dict[str, str] = json.loads(environ.get("PULUMI_CONFIG", "{}"))
    ours = {key: value for key, value in config.items() if key.startswith("deployctl:")}
    return resolve({"name": environ["PULUMI_STACK"].rpartition("/")[2]}, pulumi=ours, env=environ).spec


def main(environ: Mapping[str, str]) -> None:
    spec = read_spec(environ)
    raise NotYetError(
        f"`pulumi up` cannot deploy to {spec.cloud!r} yet",
        why="this version deploys to this machine only; the config of this stack is valid",
        next_command="deployctl up --model demo",
    )


if __name__ == "__main__":
    main(os.environ)
