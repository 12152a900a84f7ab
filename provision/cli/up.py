"""`deployctl up`."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli.doctor import explaining
from provision.cli.host_options import HostIdentityOption, HostKeyOption, refuse_without_host
from provision.cli.lock import LockOption, UpgradeFlag
from provision.cli.names import NameArgument, one_name
from provision.cli.output import JsonFlag, say
from provision.cli.spec_flags import Given, spec_options
from provision.errors import UsageError

if TYPE_CHECKING:
    from provision.spec import DeploymentSpec
    from provision.state import LocalState

app = typer.Typer(add_completion=False)
YesFlag = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.command()
@spec_options
def up(
    given: Given,
    name_argument: NameArgument = None,
    yes: YesFlag = False,
    host_key: HostKeyOption = None,
    identity: HostIdentityOption = None,
    lock: LockOption = None,
    upgrade: UpgradeFlag = False,
    json: JsonFlag = False,
) -> None:
    """Plan, start and prove a deployment; prints its endpoint and key.

    Safe to repeat: it takes up again what Ctrl-C left, says so when everything is up already, and changes a
    running deployment to what is asked for now, like redeploy. Without any option it takes up the existing
    deployment as it is. With a deploy.yaml it builds what deploy.lock says, and writes down there what it has built.
    """
    from provision.cli.deploy import asked_before, change, finish, start, wait_ready
    from provision.cli.lock import open_lock
    from provision.cli.present import ready_text
    from provision.config import find_file
    from provision.local import LocalTarget
    from provision.state import locked, open_state, this_command

    spec = wanted_spec(given, name_argument)
    refuse_without_host(spec, host_key, identity)
    lock_file = open_lock(find_file(given.file), lock, upgrade=upgrade)
    if spec.is_cloud:
        from provision.cli.cloud_up import up_cloud

        refuse_local_name(spec)
        up_cloud(spec, yes=yes, json=json, lock=lock_file)
        return
    refuse_cloud_name(spec)
    state = open_state(spec.name)
    refuse_other_place(spec, state)
    if spec.cloud == "host":
        from provision.cli.host_up import up_host

        with locked(state, this_command()):
            up_host(spec, state, yes=yes, json=json, host_key=host_key, identity=identity, lock=lock_file)
        return
    target = LocalTarget(state)
    with locked(target.state, this_command()), explaining(target):
        seen = target.observe()
        if lock_file is not None:
            spec = lock_file.settle(spec, asked_before(target, seen), fresh=seen.life in ("stopped", "failed"))
        if seen.life == "failed":
            say(f"{spec.name} has failed ({seen.error}); it is started anew")
            target.stop()
            seen = target.observe()
        if seen.life == "stopped" or seen.wanted_release is None:
            target.stop()
            release = start(target, spec, yes=yes)
        else:
            changed = change(target, spec, yes=yes, command="up")
            release = changed or seen.wanted_release
            if seen.life == "ready" and changed is None:
                say(f"{spec.name} is up already, as asked")
        began = time.monotonic()
        seen = wait_ready(target, release)
        text = functools.partial(ready_text, spec.name, model=spec.model)
        finish(target, seen, text=text, took_s=time.monotonic() - began, json=json)
        if lock_file is not None:
            lock_file.note(target)


def wanted_spec(given: Given, name: str | None) -> DeploymentSpec:
    """What is asked for: flags and deploy.yaml; without either, what an existing deployment was asked to be.

    Raises SpecError, UsageError, NotFoundError, StateError.
    """
    from provision.config import find_file, resolve
    from provision.host import HostTarget, is_host
    from provision.render import absolute
    from provision.state import choose_state, list_states

    flagged = given.flags.get("name")
    chosen = one_name(name, flagged if isinstance(flagged, str) else None)
    flags = {**given.flags, **({"name": chosen} if chosen else {})}
    file = find_file(given.file)
    names = [state.name for state in list_states()]
    if file is None and set(flags) <= {"name"}:
        if chosen in names or (chosen is None and names):
            state = choose_state(chosen)
            if is_host(state):
                from provision.host_agreement import agree

                agree(HostTarget(state, say))
            stored = state.spec_values()
            if stored:
                return resolve(stored).spec
        elif on_cloud := cloud_spec(chosen):
            return on_cloud
    return absolute(resolve(flags, file).spec)


def cloud_spec(name: str | None) -> DeploymentSpec | None:
    """What the deployment of this name on a cloud was asked to be, or the only one there is. Raises CloudError."""
    from provision.cli.clouds import cloud_names, find_cloud_target

    if name is None:
        names = cloud_names()
        name = names[0] if len(names) == 1 else None
    target = find_cloud_target(name) if name else None
    return target.spec() if target else None


def refuse_other_place(spec: DeploymentSpec, state: LocalState) -> None:
    """Raises UsageError: a deployment does not move between this machine and another."""
    from provision.host import is_host

    there = "host" if is_host(state) else "local" if state.current() is not None else spec.cloud
    if there != spec.cloud:
        raise UsageError(
            f"{spec.name} is a deployment on {'a machine over SSH' if there == 'host' else 'this machine'} already",
            why=f"the options of this command say cloud: {spec.cloud}",
            next_command=f"deployctl down {spec.name}, or another --name",
        )


def refuse_local_name(spec: DeploymentSpec) -> None:
    """Raises UsageError: one name means one deployment, wherever it lives."""
    from provision.cli.names import find_local_target

    if find_local_target(spec.name) is not None:
        raise UsageError(
            f"{spec.name} is a deployment on this machine, or on one over SSH, already",
            next_command=f"deployctl down {spec.name}, or another --name",
        )


def refuse_cloud_name(spec: DeploymentSpec) -> None:
    """Raises UsageError, as above. Asks Pulumi only for a name that is new on this machine."""
    from provision.cli.clouds import find_cloud_target
    from provision.cli.names import find_local_target

    if find_local_target(spec.name) is None and (target := find_cloud_target(spec.name)) is not None:
        known = target.spec()
        raise UsageError(
            f"{spec.name} is a deployment on {known.cloud if known else 'a cloud'} already",
            why="the options of this command say cloud: local",
            next_command=f"deployctl redeploy {spec.name} with the options to change, or another --name",
        )
