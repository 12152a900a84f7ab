"""`deployctl exec`."""

from __future__ import annotations

import sys

import typer

from provision.cli.after_dashes import AfterDashes, words_after_dashes
from provision.cli.names import NameArgument, NameOption, find_target
from provision.cli.output import JsonFlag, emit_json
from provision.cli.ssh import IdentityOption
from provision.errors import UsageError

app = typer.Typer(add_completion=False)


@app.command(cls=AfterDashes)
def exec_(
    context: typer.Context,
    name: NameArgument = None,
    name_option: NameOption = None,
    identity: IdentityOption = None,
    json: JsonFlag = False,
) -> None:
    """Run a command on a deployment's machine, without a terminal: deployctl exec NAME -- uptime.

    Standard input, output and error are the command's, and its exit status is this one's; 21 and 22 are deployctl's
    own. With --json: {"exit_code", "stdout", "stderr"}.
    """
    from provision.remote import connect
    from provision.shell import reached, shell_of

    command = words_after_dashes(context)
    if not command:
        raise UsageError("there is no command to run", next_command="deployctl exec NAME -- uptime")
    shell = shell_of(find_target(name, name_option), identity)
    with reached(shell) as login, connect(login) as remote:
        stdin = None if sys.stdin.isatty() else sys.stdin.buffer
        if json:
            done = remote.run(command, b"" if stdin is None else stdin.read())
            out, err = (text.decode("utf-8", "replace") for text in (done.out, done.err))
            emit_json({"exit_code": done.code, "stdout": out, "stderr": err})
            code = done.code
        else:
            code = remote.follow(command, stdin, _write_out, _write_err)
    raise typer.Exit(code)


def _write_out(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _write_err(data: bytes) -> None:
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()
