"""`deployctl config show`, `deployctl config schema` and `deployctl config pulumi`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from provision.cli.output import JsonFlag, emit, emit_json, say
from provision.cli.spec_flags import Given, spec_options

if TYPE_CHECKING:
    from provision.config import Resolved

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Show where each value of the spec comes from; print its JSON Schema, and the settings of Pulumi.",
)

AllFlag = Annotated[bool, typer.Option("--all", "-a", help="Defaults too, not only what was set.")]


StackOption = Annotated[
    str | None, typer.Option("--stack", metavar="STACK", help="Read Pulumi.STACK.yaml of this folder too.")
]


@app.command()
@spec_options
def show(given: Given, stack: StackOption = None, everything: AllFlag = False, json: JsonFlag = False) -> None:
    """Show the spec's values and where each came from: flag, environment, deploy.yaml with its line, default.

    Flags win over deploy.yaml, deploy.yaml over Pulumi config, Pulumi config over defaults. Secrets are
    hidden.
    """
    from provision.config import find_file, read_stack, resolve

    pulumi = read_stack(stack) if stack else None
    resolved = resolve(given.flags, find_file(given.file), pulumi)
    if json:
        emit_json(_as_json(resolved))
        return
    _print(resolved, everything=everything)


@app.command()
def schema(json: JsonFlag = False) -> None:
    """Print the JSON Schema of deploy.yaml, for editors. It is JSON with and without --json."""
    from provision.spec import json_schema

    emit_json(json_schema())


@app.command()
def pulumi(json: JsonFlag = False) -> None:
    """Print lines to eval, after which a plain `pulumi` works on the same stacks as deployctl."""
    import os

    from provision.backend import choose_backend, prepare, shell_lines

    backend = choose_backend(os.environ)
    folder = prepare(backend)
    if json:
        emit_json({"folder": str(folder), "variables": dict(backend.variables)})
    else:
        emit(shell_lines(backend))


def _as_json(resolved: Resolved) -> dict[str, Any]:
    return {
        name: {"value": resolved.shown_json(name), "origin": str(origin), "kind": origin.kind}
        for name, origin in resolved.origins.items()
    }


def _print(resolved: Resolved, *, everything: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2), show_header=False)
    hidden = 0
    for name, origin in resolved.origins.items():
        if origin.kind == "default" and not everything:
            hidden += 1
            continue
        table.add_row(Text(name, style="bold"), Text(resolved.shown(name)), Text(str(origin), style="dim"))
    if table.row_count:
        Console(highlight=False).print(table)
    else:
        emit("(nothing is set)")
    if hidden:
        say(f"{hidden} fields have their defaults; --all shows them")
