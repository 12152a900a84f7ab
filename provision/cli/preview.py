"""`deployctl preview`."""

from __future__ import annotations

import typer

from provision.cli.lock import LockOption, UpgradeFlag, open_lock
from provision.cli.names import NameArgument
from provision.cli.output import JsonFlag
from provision.cli.spec_flags import Given, spec_options
from provision.errors import UsageError

app = typer.Typer(add_completion=False)


@app.command()
@spec_options
def preview(
    given: Given,
    name_argument: NameArgument = None,
    lock: LockOption = None,
    upgrade: UpgradeFlag = False,
    json: JsonFlag = False,
) -> None:
    """Show what `up` would do on a cloud: the plan, the preflight against your account, the resources.

    Buys nothing, and writes no lock file. Asks the cloud about quotas, zones, image and price with your credentials.
    """
    from provision.cli.up import refuse_local_name, wanted_spec

    spec = wanted_spec(given, name_argument)
    if not spec.is_cloud:
        raise UsageError(
            f"there is nothing to preview on {spec.cloud}",
            why="preview asks a cloud; a plan needs none",
            next_command="deployctl plan, or deployctl preview --cloud aws",
        )
    from provision.cli.cloud_up import preview_cloud
    from provision.config import find_file

    refuse_local_name(spec)
    preview_cloud(spec, json=json, lock=open_lock(find_file(given.file), lock, upgrade=upgrade))
