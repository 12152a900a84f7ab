"""`deployctl logs`."""

from __future__ import annotations

import json as json_format
from datetime import UTC, datetime
from typing import Annotated

import typer

from provision.cli.names import NameArgument, NameOption, find_target
from provision.cli.output import JsonFlag, emit
from provision.target import LogLine, LogQuery

app = typer.Typer(add_completion=False)


@app.command()
def logs(
    name: NameArgument = None,
    name_option: NameOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")] = False,
    since: Annotated[
        str | None, typer.Option(help="Only lines of the last 30s, 10m, 2h, 1d.", show_default=False)
    ] = None,
    engine: Annotated[bool, typer.Option("--engine", help="The engine's lines.")] = False,
    server: Annotated[bool, typer.Option("--server", help="The server's lines.")] = False,
    agent: Annotated[bool, typer.Option("--agent", help="The agent's lines.")] = False,
    supervisor: Annotated[bool, typer.Option("--supervisor", help="The supervisor's lines.")] = False,
    boot: Annotated[bool, typer.Option("--boot", help="A cloud machine's first start.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show the logs of engine, server, agent and supervisor, merged by time; of a cloud machine, its boot's too.

    With --json each line is one JSON object: {"unit", "at", "text"}.
    """
    from provision.logs import parse_age

    wanted = {"engine": engine, "server": server, "agent": agent, "supervisor": supervisor, "boot": boot}
    units = tuple(unit for unit, chosen in wanted.items() if chosen)
    query = LogQuery(units, None if since is None else parse_age(since), follow)
    target = find_target(name, name_option)
    try:
        for line in target.logs(query):
            emit(as_json_line(line) if json else as_text(line))
    except KeyboardInterrupt:
        if not follow:
            raise


def as_text(line: LogLine) -> str:
    """ "12:00:01 engine     text", in local time."""
    clock = datetime.fromtimestamp(line.at, UTC).astimezone().strftime("%H:%M:%S") if line.at else " " * 8
    return f"{clock} {line.unit:<10} {line.text}"


def as_json_line(line: LogLine) -> str:
    return json_format.dumps({"unit": line.unit, "at": line.at, "text": line.text}, ensure_ascii=False)
