"""`deployctl rollback`."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli.ask import confirm
from provision.cli.names import NameOption, find_target
from provision.cli.output import JsonFlag, say
from provision.cli.releases import reader
from provision.errors import DeployctlError, not_up
from runtime.deployment import HOLD_MAX_S

if TYPE_CHECKING:
    from provision.cloud import CloudTarget
    from provision.host import HostTarget
    from provision.local import LocalTarget
    from provision.target import Observation

app = typer.Typer(add_completion=False)
ReleaseArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[RELEASE]",
        help="Where to go back to, as `deployctl releases list` shows it. Default: the one that served before.",
        show_default=False,
    ),
]
YesFlag = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.command()
def rollback(
    release: ReleaseArgument = None, name: NameOption = None, yes: YesFlag = False, json: JsonFlag = False
) -> None:
    """Go back to an earlier release; the port stays open, as with redeploy.

    When the earlier release does not come up, the one that served until now serves again and the exit code is 16.
    """
    from provision.cloud import CloudTarget
    from provision.host import HostTarget
    from provision.host_agreement import agree
    from provision.local import LocalTarget
    from provision.releases import choose_release, read_releases
    from provision.state import locked, this_command

    target = find_target(None, name)
    seen = target.observe()
    if seen.life == "stopped" or seen.wanted_release is None:
        raise not_up(target.name)
    entries = read_releases(reader(target), target.name)
    serving = next((entry.release for entry in entries if entry.state == "serving"), seen.wanted_release)
    chosen = choose_release(entries, release, serving, target.name).release
    if chosen == serving == seen.wanted_release:
        say(f"release {chosen} of {target.name} serves already")
    if isinstance(target, CloudTarget):
        _roll_cloud(target, chosen, yes=yes, json=json)
        return
    assert isinstance(target, LocalTarget | HostTarget)
    with locked(target.state, this_command()):
        if isinstance(target, HostTarget):
            agree(target)
        _roll_machine(target, chosen, seen, yes=yes, json=json)


def _roll_machine(target: LocalTarget | HostTarget, chosen: str, seen: Observation, *, yes: bool, json: bool) -> None:
    """The machine still has the release: it is told to make it the current one again."""
    from provision.local import LocalTarget
    from provision.progress import clients_text

    if chosen != seen.wanted_release:
        say(f"{target.name} goes from release {seen.wanted_release} back to {chosen}; this changes:")
        for line in _changes(target, chosen):
            say(f"  {line}")
        say(clients_text(HOLD_MAX_S, seen.held_s))
        confirm("Go back?", yes=yes, command=f"deployctl rollback {chosen} --name {target.name}")
        target.go_back(chosen)
    began = time.monotonic()
    if isinstance(target, LocalTarget):
        from provision.cli.deploy import finish, wait_ready
        from provision.cli.present import changed_text

        now = wait_ready(target, chosen)
        text = functools.partial(changed_text, target.name, release=now.release)
        finish(target, now, text=text, took_s=time.monotonic() - began, json=json)
    else:
        from provision.cli.host_up import finish_host

        finish_host(target, chosen, began=began, json=json, command="redeploy")


def _changes(target: LocalTarget | HostTarget, chosen: str) -> list[str]:
    """What differs between what was asked for last and then."""
    from provision.config import resolve
    from provision.render import changes

    then = target.state.spec_values(chosen)
    if then is None:
        return ["unknown: nobody has written down what that release was asked to be"]
    now = resolve(target.state.spec_values() or {}, env={}).spec
    return [str(item) for item in changes(now, resolve(then, env={}).spec)] or ["nothing but the release itself"]


def _roll_cloud(target: CloudTarget, chosen: str, *, yes: bool, json: bool) -> None:
    """The stack is made to say again what it said then: stack and machine always agree."""
    from provision.cli.cloud_up import up_cloud
    from provision.config import resolve
    from provision.fields import SECRETS
    from provision.history import fetch_wheel, recall
    from provision.wheel import runtime_wheel

    target.agree()
    now = target.spec()
    if now is None:
        raise not_up(target.name)
    past = recall(target.mailbox, target.name, chosen)
    secret = {name: value.get_secret_value() for name in SECRETS if (value := getattr(now, name)) is not None}
    values = past.spec | secret | {"name": target.name}
    values.pop("runtime_wheel", None)
    try:
        is_here = runtime_wheel(now.runtime_wheel).sha256 == past.sha256
    except DeployctlError:  # the file that another laptop has deployed from
        is_here = False
    wheel = now.runtime_wheel if is_here else str(fetch_wheel(target.mailbox, past, target.name))
    if wheel is not None:
        values["runtime_wheel"] = wheel
    up_cloud(resolve(values, env={}).spec, yes=yes, json=json, command="rollback")
