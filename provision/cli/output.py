"""Where a command's words go: prose to stderr, results to stdout, nothing but JSON on stdout with `--json`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from provision.errors import DeployctlError

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(slots=True)
class OutputMode:
    """How this run of deployctl prints; kept in the root context."""

    json: bool = False


def _remember_json(context: typer.Context, value: bool) -> bool:
    if value:
        context.find_root().obj = OutputMode(json=True)
    return value


JsonFlag = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON on stdout and nothing else.", callback=_remember_json),
]
"""`json: JsonFlag = False` in every command; errors then come as JSON too."""


def console() -> Console:
    """The one console for prose, progress and errors: stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str = "") -> None:
    """One line of prose on stderr, as it is (no markup)."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def emit(text: str) -> None:
    """A result on stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def emit_json(value: Any) -> None:
    """A result on stdout as indented JSON. `value` is built of JSON's own types."""
    emit(json.dumps(value, indent=2, ensure_ascii=False))


def show_error(error: DeployctlError, *, as_json: bool) -> None:
    """What, why and the next command: for people on stderr, for programs on stdout."""
    if as_json:
        emit_json(
            {
                "error": {
                    "kind": type(error).__name__,
                    "exit_code": error.exit_code,
                    "what": error.what,
                    "why": error.why,
                    "next": error.next_command,
                }
            }
        )
        return
    from rich.text import Text

    out = console()
    out.print(Text.assemble(("error: ", "bold red"), error.what))
    for line in (error.why or "").splitlines():
        out.print(Text("  " + line))
    if error.next_command:
        out.print(Text.assemble(("  next: ", "bold"), (error.next_command, "cyan")))
