"""`deployctl down`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from provision.cli.names import NameArgument, NameOption, one_name
from provision.cli.output import JsonFlag, emit, emit_json, say
from provision.errors import LeftoverError, LockedError, UsageError
from provision.local import LocalTarget
from provision.state import LocalState, choose_state, interrupt_holder, list_states, locked, this_command
from provision.target import Removal

app = typer.Typer(add_completion=False)
HOLDER_TIMEOUT_S = 10.0


@app.command()
def down(
    name: NameArgument = None,
    name_option: NameOption = None,
    all_: Annotated[bool, typer.Option("--all", help="All deployments.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accepted for scripts; down never asks.")] = False,
    json: JsonFlag = False,
) -> None:
    """Stop a deployment, delete its state and prove that nothing is left.

    Works on a damaged or half-made deployment too, and while `up` still runs (which it ends). Models stay in the cache.
    """
    chosen = one_name(name, name_option)
    if all_ and chosen is not None:
        raise UsageError(f"both --all and {chosen} are given", why="name one or take all")
    if chosen is None and (all_ or not list_states()):
        removals = [remove(state) for state in list_states()]
    else:
        removals = [remove(choose_down(chosen))]
    if json:
        emit_json([dataclasses.asdict(removal) | {"clean": removal.is_clean} for removal in removals])
    elif not removals:
        emit("nothing is deployed: 0 processes, $0.00/h")
    else:
        for removal in removals:
            emit(describe(removal))
    for removal in removals:
        if not removal.is_clean:
            raise leftover(removal)


def choose_down(name: str | None) -> LocalState:
    """Like every command, but a deployment that is gone already is no error: down is safe to repeat."""
    from provision.state import open_state

    return choose_state(None) if name is None else open_state(name)


def remove(state: LocalState) -> Removal:
    """Ends whatever works on the deployment, then the deployment."""
    if not state.root.exists():
        say(f"there is no deployment called {state.name}; looked for what may be left of one")
    if state.root.is_symlink() or (state.root.exists() and not state.root.is_dir()):
        return LocalTarget(state).remove()
    for _ in range(3):
        holder = interrupt_holder(state, timeout_s=HOLDER_TIMEOUT_S)
        if holder is not None:
            say(f"ended `{holder.command}` (pid {holder.pid}), which worked on {state.name}")
        try:
            with locked(state, this_command()):
                return LocalTarget(state).remove()
        except LockedError as error:
            refused = error
    raise refused


def describe(removal: Removal) -> str:
    """The proof in words."""
    ended = f"ended {', '.join(removal.ended)}\n" if removal.ended else ""
    port = ""
    if removal.port is not None:
        port = f", port {removal.port} {'free' if removal.port_free else 'NOT free'}"
    left = len(removal.processes_left)
    plural = "process" if left == 1 else "processes"
    return f"{ended}{removal.name} is down: {left} {plural} left{port}, ${removal.price_per_hour:.2f}/h"


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
