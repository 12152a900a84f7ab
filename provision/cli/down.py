"""`deployctl down`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli.ask import confirm_name
from provision.cli.names import NameArgument, NameOption, one_name, target_of
from provision.cli.output import JsonFlag, emit, emit_json, say
from provision.errors import CloudError, LeftoverError, LockedError, NotFoundError, UsageError
from provision.local import LocalTarget
from provision.state import LocalState, choose_state, interrupt_holder, list_states, locked, open_state, this_command
from provision.target import Removal

if TYPE_CHECKING:
    from provision.cloud import CloudRemoval

app = typer.Typer(add_completion=False)
HOLDER_TIMEOUT_S = 10.0


@app.command()
def down(
    name: NameArgument = None,
    name_option: NameOption = None,
    all_: Annotated[bool, typer.Option("--all", help="All deployments.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask, though no deployment of a cloud or host is named.")
    ] = False,
    keep_disk: Annotated[
        bool, typer.Option("--keep-disk", help="Keep a cloud's disk of weights (it bills), or a host's models.")
    ] = False,
    cloud: Annotated[
        str | None, typer.Option(help="aws or alicloud: where to look when its state is lost.", show_default=False)
    ] = None,
    region: Annotated[str | None, typer.Option(help="The region to look in, with --cloud.", show_default=False)] = None,
    json: JsonFlag = False,
) -> None:
    """Stop a deployment, delete its state and prove that nothing is left.

    Works on a damaged or half-made deployment too, and while `up` still runs (which it ends). Models stay in the
    cache. On a cloud everything is deleted, then the cloud itself is asked what still bears the deployment's name.
    A deployment on a cloud or host that is not named is asked about first.
    """
    chosen = one_name(name, name_option)
    if all_ and chosen is not None:
        raise UsageError(f"both --all and {chosen} are given", why="name one or take all")
    if (cloud is None) != (region is None):
        raise UsageError("--cloud and --region go together", next_command="deployctl down NAME --cloud aws --region …")
    removals = [*find_and_remove(chosen, all_=all_, cloud=cloud, region=region, keep_disk=keep_disk, yes=yes)]
    if json:
        emit_json([as_json(removal) for removal in removals])
    elif not removals:
        emit("nothing is deployed: 0 processes, $0.00/h")
    else:
        for removal in removals:
            emit(describe(removal) if isinstance(removal, Removal) else describe_cloud(removal))
    for removal in removals:
        if not removal.is_clean:
            raise leftover(removal) if isinstance(removal, Removal) else cloud_leftover(removal)


def find_and_remove(
    name: str | None, *, all_: bool, cloud: str | None, region: str | None, keep_disk: bool, yes: bool
) -> Iterator[Removal | CloudRemoval]:
    """Removes what was named, the only one, or all; one by one, so that a Ctrl-C leaves the rest alone."""
    from provision.cli import clouds
    from provision.host import is_host

    if cloud is not None and region is not None:
        if name is None:
            raise UsageError(
                "--cloud and --region need the name", next_command="deployctl down NAME --cloud … --region …"
            )
        yield remove_from_cloud(name, cloud, region, keep_disk=keep_disk)
        return
    states = list_states()
    if name is not None:
        target = None if open_state(name).exists() else clouds.find_cloud_target(name)
        if target is None:
            yield remove(open_state(name), keep_disk=keep_disk)
        else:
            yield target.remove(say, keep_disk=keep_disk)
        return
    if all_:
        targets, problems = clouds.cloud_targets()
        away = [*(state.name for state in states if is_host(state)), *(target.name for target in targets)]
        if away:
            what = f"everything of {', '.join(away)} is deleted"
            confirm_name(what, away[0], yes=yes, command="deployctl down --all --yes")
        yield from (remove(state, keep_disk=keep_disk) for state in states)
        yield from (target.remove(say, keep_disk=keep_disk) for target in targets)
        if problems:
            raise CloudError("not every deployment could be asked", why="\n".join(problems))
        return
    if states:
        only_state = choose_state(None)
        if is_host(only_state):
            agree_to(only_state.name, yes=yes)
        yield remove(only_state, keep_disk=keep_disk)
        return
    names = clouds.cloud_names()
    if len(names) > 1:
        raise NotFoundError(
            "there are several deployments and none was named",
            why=", ".join(names),
            next_command=f"deployctl down {names[0]}, or deployctl down --all",
        )
    if names and (only := clouds.find_cloud_target(names[0])) is not None:
        agree_to(only.name, yes=yes)
        yield only.remove(say, keep_disk=keep_disk)


def agree_to(name: str, *, yes: bool) -> None:
    """Asks about a deployment that is not on this machine and was not named. Raises DeclinedError, UsageError."""
    confirm_name(f"everything of {name} is deleted", name, yes=yes, command=f"deployctl down {name}")


def remove_from_cloud(name: str, cloud: str, region: str, *, keep_disk: bool) -> CloudRemoval:
    """With the stack where there is one, else by name and tags alone."""
    from provision.cli import clouds

    target = clouds.find_cloud_target(name)
    known = target.spec() if target else None
    if target is not None and known is not None and (known.cloud, known.region) == (cloud, region):
        return target.remove(say, keep_disk=keep_disk)
    from provision.cloud import CloudRemoval, sweep_away

    say(f"there is no stack of {name} in {region}; the cloud itself is asked")
    return CloudRemoval(name, 0, sweep_away(cloud, region, name, say, keep_disk=keep_disk))


def remove(state: LocalState, *, keep_disk: bool = False) -> Removal:
    """Ends whatever works on the deployment, then the deployment."""
    if not state.root.exists():
        say(f"there is no deployment called {state.name}; looked for what may be left of one on this machine")
        say(f"if it was on a cloud: deployctl down {state.name} --cloud aws --region us-east-1")
    if state.root.is_symlink() or (state.root.exists() and not state.root.is_dir()):
        return LocalTarget(state).remove()
    for _ in range(3):
        holder = interrupt_holder(state, timeout_s=HOLDER_TIMEOUT_S)
        if holder is not None:
            say(f"ended `{holder.command}` (pid {holder.pid}), which worked on {state.name}")
        try:
            with locked(state, this_command()):
                target = target_of(state)
                return target.remove() if isinstance(target, LocalTarget) else target.remove(keep_disk=keep_disk)
        except LockedError as error:
            refused = error
    raise refused


def as_json(removal: Removal | CloudRemoval) -> dict[str, object]:
    found = dataclasses.asdict(removal) | {"clean": removal.is_clean}
    if not isinstance(removal, Removal):
        found |= {"resources_left": len(removal.sweep.found), "usd_per_hour": removal.sweep.usd_per_hour}
    return found


def describe_cloud(removal: CloudRemoval) -> str:
    """The proof in words: what was deleted, and the cloud's own answer."""
    from provision.sweep import describe as describe_sweep

    deleted = f"deleted {removal.deleted} resources\n" if removal.deleted else ""
    return f"{deleted}{removal.name}: {describe_sweep(removal.sweep)}"


def cloud_leftover(removal: CloudRemoval) -> LeftoverError:
    sweep = removal.sweep
    reasons = [f"still there: {item}" for item in sweep.found]
    reasons += [f"unknown: {item.kind} ({item.reason})" for item in sweep.unknown]
    return LeftoverError(
        f"it is not proven that nothing of {removal.name} is left",
        why="\n".join(reasons),
        next_command=f"deployctl down {removal.name} --cloud {sweep.cloud} --region {sweep.region}",
    )


def describe(removal: Removal) -> str:
    """The proof in words."""
    ended = f"ended {', '.join(removal.ended)}\n" if removal.ended else ""
    port = ""
    if removal.port is not None:
        port = f", port {removal.port} {'free' if removal.port_free else 'NOT free'}"
    left = len(removal.processes_left)
    plural = "process" if left == 1 else "processes"
    kept = f"\nkept: {removal.kept}" if removal.kept else ""
    return f"{ended}{removal.name} is down: {left} {plural} left{port}, ${removal.price_per_hour:.2f}/h{kept}"


def leftover(removal: Removal) -> LeftoverError:
    reasons = [f"still runs: {process}" for process in removal.processes_left]
    if not removal.port_free:
        reasons.append(f"port {removal.port} is still held by it")
    if removal.state_left:
        reasons.append(f"could not delete {removal.state_left}")
    return LeftoverError(
        f"{removal.name} left something behind",
        why="\n".join(reasons),
        next_command=f"deployctl down {removal.name}",
    )
