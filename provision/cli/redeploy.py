"""`deployctl redeploy`."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli.doctor import explaining
from provision.cli.lock import LockOption
from provision.cli.names import NameArgument, find_target, one_name
from provision.cli.output import JsonFlag, say
from provision.cli.spec_flags import Given, spec_options
from provision.errors import not_up
from provision.host import HostTarget
from provision.local import LocalTarget

if TYPE_CHECKING:
    from provision.spec import DeploymentSpec
    from provision.target import Deployed

app = typer.Typer(add_completion=False)
YesFlag = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.command()
@spec_options
def redeploy(
    given: Given,
    name_argument: NameArgument = None,
    yes: YesFlag = False,
    lock: LockOption = None,
    json: JsonFlag = False,
) -> None:
    """Change parameters or model of a running deployment; the port stays open.

    Options (and --file) change what they name and leave the rest as it is. Requests wait while the new release
    loads. When it fails, the release before serves again and the exit code is 16.
    """
    from provision.cli.deploy import asked_before, change, finish, wait_ready
    from provision.cli.lock import open_lock
    from provision.cli.present import changed_text
    from provision.state import locked, this_command

    lock_file = open_lock(given.file, lock, is_filled=True)
    flagged = given.flags.get("name")
    found = find_target(one_name(name_argument, flagged if isinstance(flagged, str) else None), None)
    if isinstance(found, HostTarget):
        from provision.cli.host_up import up_host
        from provision.host_agreement import agree

        with locked(found.state, this_command()):
            if found.observe().life == "stopped":
                raise not_up(found.name)
            agree(found)
            spec = changed_spec(found, given)
            up_host(spec, found.state, yes=yes, json=json, command="redeploy", lock=lock_file)
        return
    if not isinstance(found, LocalTarget):
        from provision.cli.cloud_up import up_cloud

        spec = changed_cloud_spec(found, given)
        up_cloud(spec, yes=yes, json=json, command="redeploy", lock=lock_file)
        return
    target = found
    spec = changed_spec(target, given)
    with locked(target.state, this_command()), explaining(target):
        seen = target.observe()
        if seen.life == "stopped" or seen.wanted_release is None:
            raise not_up(target.name)
        if lock_file is not None:
            spec = lock_file.settle(spec, asked_before(target, seen), fresh=False)
        release = change(target, spec, yes=yes, command="redeploy")
        if release is None:
            say(f"nothing to change: {target.name} is as asked")
        began = time.monotonic()
        seen = wait_ready(target, release or seen.wanted_release)
        text = functools.partial(changed_text, spec.name, release=seen.release)
        finish(target, seen, text=text, took_s=time.monotonic() - began, json=json)
        if lock_file is not None:
            lock_file.note(target)


def changed_spec(target: LocalTarget | HostTarget, given: Given) -> DeploymentSpec:
    """The stored spec with what the file and the flags say laid over it. Raises SpecError, StateError."""
    return laid_over(dict(target.state.spec_values() or {}), target.name, given)


def changed_cloud_spec(target: Deployed, given: Given) -> DeploymentSpec:
    """The same for a deployment on a cloud. Raises SpecError, NotRunningError."""
    from provision.cloud import CloudTarget
    from provision.fields import SECRETS

    if isinstance(target, CloudTarget):
        target.agree()
    stored = target.spec() if isinstance(target, CloudTarget) else None
    if stored is None:
        raise not_up(target.name)
    secret = {name: value.get_secret_value() for name in SECRETS if (value := getattr(stored, name)) is not None}
    return laid_over(stored.public_values() | secret, target.name, given)


def laid_over(values: dict[str, object], name: str, given: Given) -> DeploymentSpec:
    from provision.config import read_file, resolve
    from provision.render import absolute

    if given.file is not None:
        values |= {key: value for key, (value, _line) in read_file(given.file).items()}
    values |= given.flags
    return absolute(resolve(values | {"name": name}).spec)
