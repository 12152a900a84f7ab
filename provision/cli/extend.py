"""`deployctl extend`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from provision.cli.names import NameOption, find_target
from provision.cli.output import JsonFlag, emit, emit_json, say
from provision.cli.stop import rented
from provision.errors import UsageError
from provision.progress import format_seconds

app = typer.Typer(add_completion=False)


@app.command()
def extend(
    words: Annotated[
        list[str], typer.Argument(metavar="[NAME] DURATION", help="How much later it ends: 4h, 90m, 1h30m.")
    ],
    name_option: NameOption = None,
    json: JsonFlag = False,
) -> None:
    """Let the cloud end a deployment later: `deployctl extend 4h`, or `deployctl extend NAME 4h`."""
    name, seconds = read_words(words)
    target = rented(find_target(name, name_option), "extend")
    from provision.lease import leased
    from provision.power import extend_life
    from provision.state import this_command

    with leased(target, this_command(), say):
        expires_at = extend_life(target, seconds, say, time.time())
    if json:
        emit_json({"name": target.name, "expires_at": expires_at})
        return
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(expires_at))
    emit(f"{target.name} ends in {format_seconds(expires_at - time.time())}, at {at}")


def read_words(words: list[str]) -> tuple[str | None, int]:
    """(name or None, seconds). Raises UsageError."""
    from provision.values import duration_seconds

    if len(words) > 2:
        raise UsageError(f"too many words: {' '.join(words)}", next_command="deployctl extend NAME 4h")
    try:
        seconds = duration_seconds(words[-1])
    except ValueError as error:
        raise UsageError(str(error), next_command="deployctl extend 4h") from error
    if seconds == 0:
        raise UsageError("by nothing is no extension", next_command="deployctl extend 4h")
    return (words[0] if len(words) == 2 else None), seconds
