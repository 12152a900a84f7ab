"""`deployctl redeploy`."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli.names import NameArgument, find_target, one_name
from provision.cli.output import JsonFlag, say
from provision.cli.spec_flags import Given, spec_options
from provision.errors import NotRunningError

if TYPE_CHECKING:
    from provision.local import LocalTarget
    from provision.spec import DeploymentSpec

app = typer.Typer(add_completion=False)
YesFlag = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.command()
@spec_options
def redeploy(given: Given, name_argument: NameArgument = None, yes: YesFlag = False, json: JsonFlag = False) -> None:
    """Change parameters or model of a running deployment; the port stays open.

    Options (and --file) change what they name and leave the rest as it is. Requests wait while the new release
    loads. When it fails, the release before serves again and the exit code is 16.
    """
    from provision.cli.deploy import change, finish, wait_ready
    from provision.cli.present import changed_text
    from provision.state import locked, this_command

    flagged = given.flags.get("name")
    target = find_target(one_name(name_argument, flagged if isinstance(flagged, str) else None), None)
    spec = changed_spec(target, given)
    with locked(target.state, this_command()):
        seen = target.observe()
        if seen.life == "stopped" or seen.wanted_release is None:
            raise NotRunningError(f"{target.name} is not running", next_command=f"deployctl up --name {target.name}")
        release = change(target, spec, yes=yes, command="redeploy")
        if release is None:
            say(f"nothing to change: {target.name} is as asked")
        began = time.monotonic()
        seen = wait_ready(target, release or seen.wanted_release)
        text = functools.partial(changed_text, spec.name, release=seen.release)
        finish(target, seen, text=text, took_s=time.monotonic() - began, json=json)


def changed_spec(target: LocalTarget, given: Given) -> DeploymentSpec:
    """The stored spec with what the file and the flags say laid over it. Raises SpecError, StateError."""
    from provision.config import read_file, resolve
    from provision.render import absolute

    values = dict(target.state.spec_values() or {})
    if given.file is not None:
        values |= {name: value for name, (value, _line) in read_file(given.file).items()}
    values |= given.flags
    return absolute(resolve(values | {"name": target.name}).spec)
