"""`deployctl ssh`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from provision.cli.after_dashes import AfterDashes, words_after_dashes
from provision.cli.names import NameArgument, NameOption, find_target
from provision.cli.output import JsonFlag, emit, emit_json, say
from provision.errors import UsageError

app = typer.Typer(add_completion=False)
IdentityOption = Annotated[
    Path | None,
    typer.Option("--identity", "-i", help="Private key in place of the deployment's own.", show_default=False),
]
DryRunFlag = Annotated[bool, typer.Option("--dry-run", help="Print what would be run, and run nothing.")]


@app.command(cls=AfterDashes)
def ssh(
    context: typer.Context,
    name: NameArgument = None,
    name_option: NameOption = None,
    identity: IdentityOption = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
) -> None:
    """Open a shell on a deployment's machine, or run a command there: deployctl ssh NAME -- nvidia-smi.

    Real OpenSSH with the deployment's key and its pinned host key; your own SSH settings take no part. Machines
    without a public address are reached through their cloud. --json needs --dry-run.
    """
    from provision.shell import reached, run_openssh, shell_of
    from provision.ssh import shell_argv
    from provision.ways import CloudAssistant, describe, require_tools, session_argv

    if json and not dry_run:
        raise UsageError("--json needs --dry-run", why="a shell has no result", next_command="deployctl exec NAME -- …")
    command = words_after_dashes(context)
    shell = shell_of(find_target(name, name_option), identity)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    plain = shell_argv(shell.login, command, terminal=terminal)
    session = session_argv(shell.way) if isinstance(shell.way, CloudAssistant) and not command else None
    if dry_run:
        argv = session or plain
        if json:
            emit_json({"argv": argv, "way": describe(shell.way)})
        else:
            emit(shlex.join(argv))
        return
    if session is not None:
        from provision.shell import run_session

        require_tools(shell.way)
        say(describe(shell.way))
        raise typer.Exit(run_session(session))
    with reached(shell) as login:
        raise typer.Exit(run_openssh(shell_argv(login, command, terminal=terminal), login))
