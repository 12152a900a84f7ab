"""`deployctl logs`."""

from __future__ import annotations

import json as json_format
import os
import re
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from provision.cli.names import NameArgument, NameOption, find_target
from provision.cli.output import JsonFlag, emit, say
from provision.errors import UsageError
from provision.logs import Level, level_of
from provision.target import LogLine, LogQuery

app = typer.Typer(add_completion=False)
_COLOURS: dict[Level, str] = {"error": "31", "warning": "33", "info": "", "debug": "2"}  # SGR codes of ECMA-48
_UNIT_COLOURS = {"engine": "36", "server": "35", "agent": "34", "supervisor": "34", "boot": "32"}


@app.command()
def logs(
    name: NameArgument = None,
    name_option: NameOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")] = False,
    since: Annotated[
        str | None, typer.Option(help="Only lines of the last 30s, 10m, 2h, 1d.", show_default=False)
    ] = None,
    grep: Annotated[
        str | None, typer.Option(help="Only lines that match this regular expression.", show_default=False)
    ] = None,
    engine: Annotated[bool, typer.Option("--engine", help="The engine's lines.")] = False,
    server: Annotated[bool, typer.Option("--server", help="The server's lines.")] = False,
    agent: Annotated[bool, typer.Option("--agent", help="The agent's lines.")] = False,
    supervisor: Annotated[bool, typer.Option("--supervisor", help="The supervisor's lines (local).")] = False,
    boot: Annotated[bool, typer.Option("--boot", help="A machine's first start and the phases.")] = False,
    mailbox: Annotated[
        bool, typer.Option("--mailbox", help="What a cloud machine has uploaded, without trying SSH.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Show the logs of engine, server, agent and supervisor, merged by time; of a machine, its start's too.

    A machine's journal is read over SSH where that is open from here, else what it has uploaded to its mailbox. A
    connection that breaks is opened again, and no line is lost or shown twice. Errors and warnings are coloured on a
    terminal. With --json each line is one JSON object: {"unit", "at", "level", "text"}.
    """
    from provision.local import LocalTarget
    from provision.log_sources import BOOT, for_local, read_lines
    from provision.logs import parse_age

    wanted = {"engine": engine, "server": server, "agent": agent, "supervisor": supervisor}
    units = dict.fromkeys([unit for unit, chosen in wanted.items() if chosen] + list(BOOT if boot else ()))
    query = LogQuery(tuple(units), None if since is None else parse_age(since), follow)
    pattern = compiled(grep)
    target = find_target(name, name_option)
    if isinstance(target, LocalTarget):
        query = for_local(query)
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    try:
        for line in read_lines(target, query, say, mailbox=mailbox):
            if pattern is None or pattern.search(line.text):
                emit(as_json_line(line) if json else as_text(line, coloured=coloured))
    except KeyboardInterrupt:
        if not follow:
            raise


def compiled(expression: str | None) -> re.Pattern[str] | None:
    """Raises UsageError."""
    try:
        return None if expression is None else re.compile(expression)
    except re.error as error:
        raise UsageError(
            f"--grep: {expression!r} is not a regular expression",
            why=str(error),
            next_command=f"deployctl logs --grep {re.escape(expression or '')!r}",
        ) from None


def as_text(line: LogLine, *, coloured: bool = False) -> str:
    """ "12:00:01 engine     text", in local time."""
    clock = datetime.fromtimestamp(line.at, UTC).astimezone().strftime("%H:%M:%S") if line.at else " " * 8
    unit, text = f"{line.unit:<10}", line.text
    if coloured:
        unit = painted(unit, _UNIT_COLOURS.get(line.unit, ""))
        text = painted(text, _COLOURS[level_of(line)])
    return f"{clock} {unit} {text}"


def painted(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if code else text


def as_json_line(line: LogLine) -> str:
    found = {"unit": line.unit, "at": line.at, "level": level_of(line), "text": line.text}
    return json_format.dumps(found, ensure_ascii=False)
