"""`deployctl wake`."""

from __future__ import annotations

import functools
import time
from typing import Annotated

import typer

from provision.cli.ask import confirm
from provision.cli.names import NameArgument, NameOption, find_target
from provision.cli.output import JsonFlag, say
from provision.cli.stop import rented
from provision.errors import NotRunningError
from provision.local import LocalTarget

app = typer.Typer(add_completion=False)


@app.command()
def wake(
    name: NameArgument = None,
    name_option: NameOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonFlag = False,
) -> None:
    """Switch a stopped deployment on again and wait until it answers; its TTL counts anew.

    Exit code 20: the cloud has no such machine now. It stays stopped, and keeps its disks and its address.
    """
    found = find_target(name, name_option)
    if isinstance(found, LocalTarget):
        wake_local(found, json=json)
        return
    target = rented(found, "wake")
    from provision.cli.cloud_up import finish_cloud
    from provision.cli.doctor import explaining
    from provision.lease import leased
    from provision.power import existing_machine, wake_machine
    from provision.state import this_command

    spec, exports = existing_machine(target)
    price = "at an unknown price" if exports.hourly_price is None else f"for about ${exports.hourly_price:.2f} an hour"
    confirm(f"Wake {target.name} {price}?", yes=yes, command=f"deployctl wake {target.name}")
    began = time.monotonic()
    with leased(target, this_command(), say), explaining(target):
        wake_machine(target, say, time.time())
        finish_cloud(target, spec, None, began=began, json=json)


def wake_local(target: LocalTarget, *, json: bool) -> None:
    """As `up` would, with what the deployment was asked to be."""
    from provision.cli.deploy import finish, start, wait_ready
    from provision.cli.present import ready_text
    from provision.config import resolve
    from provision.state import locked, this_command

    values = target.state.spec_values()
    if not values:
        raise NotRunningError(f"{target.name} was never started", next_command=f"deployctl up --name {target.name}")
    spec = resolve(values).spec
    with locked(target.state, this_command()):
        seen = target.observe()
        if seen.life != "stopped" and seen.wanted_release is not None:
            say(f"{target.name} is not stopped")
            release = seen.wanted_release
        else:
            release = start(target, spec, yes=True)
        began = time.monotonic()
        seen = wait_ready(target, release)
        text = functools.partial(ready_text, spec.name, model=spec.model)
        finish(target, seen, text=text, took_s=time.monotonic() - began, json=json)
