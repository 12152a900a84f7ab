"""`deployctl releases`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from provision.cli.names import NameArgument, NameOption, find_target
from provision.cli.output import JsonFlag, emit, emit_json, say

if TYPE_CHECKING:
    from provision.target import Deployed

app = typer.Typer(add_completion=False)
PruneFlag = Annotated[
    bool, typer.Option("--prune", help="Forget the releases here that the machine does not keep any more.")
]


@app.command()
def releases(
    name: NameArgument = None, name_option: NameOption = None, prune: PruneFlag = False, json: JsonFlag = False
) -> None:
    """Show the releases that the machine keeps, newest first; `deployctl rollback` goes back to one of them.

    The machine keeps the newest three by itself, and the one that serves.
    """
    from provision.cli.ps import table
    from provision.local import LocalTarget
    from provision.releases import COLUMNS, read_releases, release_rows
    from provision.state import locked, this_command

    target = find_target(name, name_option)
    entries = read_releases(reader(target), target.name)
    if prune:
        gone: list[str] = []
        if isinstance(target, LocalTarget):
            with locked(target.state, this_command()):
                gone = target.state.forget_releases([entry.release for entry in entries])
        say(f"forgotten: {', '.join(gone)}" if gone else "there is nothing to forget")
    if json:
        emit_json([msgspec.to_builtins(entry) for entry in entries])
    else:
        emit(table([COLUMNS, *release_rows(entries, time.time())]))


def reader(target: Deployed) -> Callable[[str], bytes | None]:
    """How objects of the deployment's mailbox are read. What it gives raises BucketError, ConnectionFailedError."""
    from provision.host import HostTarget
    from provision.local import LocalTarget

    if isinstance(target, LocalTarget):
        return target.state.mailbox.get
    if isinstance(target, HostTarget):
        return target.get
    from provision.cloud import CloudTarget

    assert isinstance(target, CloudTarget)
    return target.mailbox.get
