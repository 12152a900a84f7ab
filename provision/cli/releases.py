"""`deployctl releases list|prune`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import typer

from provision.cli.names import NameArgument, NameOption, find_target
from provision.cli.output import JsonFlag, emit, emit_json

if TYPE_CHECKING:
    from provision.target import Deployed

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="The releases of a deployment that can be gone back to."
)


@app.command("list")
def list_(name: NameArgument = None, name_option: NameOption = None, json: JsonFlag = False) -> None:
    """Show the releases that the machine keeps, newest first; `deployctl rollback` goes back to one of them.

    The machine keeps the newest three by itself, and the one that serves.
    """
    from provision.cli.ps import table
    from provision.releases import COLUMNS, read_releases, release_rows

    target = find_target(name, name_option)
    entries = read_releases(reader(target), target.name)
    if json:
        emit_json([msgspec.to_builtins(entry) for entry in entries])
    else:
        emit(table([COLUMNS, *release_rows(entries, time.time())]))


@app.command("prune")
def prune_(name: NameArgument = None, name_option: NameOption = None, json: JsonFlag = False) -> None:
    """Delete what was sent, and is written down, of releases that the machine does not keep any more.

    The machine deletes its own by itself: all but the newest three and the one that serves.
    """
    from provision.cloud import CloudTarget
    from provision.history import forget
    from provision.host import HostTarget
    from provision.local import LocalTarget
    from provision.releases import read_releases
    from provision.state import locked, this_command

    target = find_target(name, name_option)
    kept = [entry.release for entry in read_releases(reader(target), target.name)]
    if isinstance(target, CloudTarget):
        gone = forget(target.mailbox, kept)
    else:
        assert isinstance(target, LocalTarget | HostTarget)
        with locked(target.state, this_command()):
            held = target if isinstance(target, HostTarget) else target.state
            gone = held.forget_releases(kept)
    if json:
        emit_json({"forgotten": gone, "kept": kept})
    else:
        emit(f"forgotten: {', '.join(gone)}" if gone else "there is nothing to forget")


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
