"""`deployctl tunnel`."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from provision.cli.names import NameArgument, NameOption, find_target
from provision.cli.output import JsonFlag, emit, emit_json, say
from provision.cli.ssh import DryRunFlag, IdentityOption

app = typer.Typer(add_completion=False)


@app.command()
def tunnel(
    name: NameArgument = None,
    name_option: NameOption = None,
    local_port: Annotated[
        int | None,
        typer.Option(
            help="Port of this machine; 0 = any. Default: the endpoint's, or any.", min=0, max=65535, show_default=False
        ),
    ] = None,
    identity: IdentityOption = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
) -> None:
    """Open a port of this machine that leads to a deployment's endpoint, until Ctrl-C.

    Prints the base URL to use meanwhile; a pinned certificate is valid there too. A connection that breaks is opened
    again. Works where the endpoint's own port cannot be reached from here: intranet, a firewall, another address.
    """
    from provision.local import LocalTarget
    from provision.shell import shell_of
    from provision.tunnel import Tunnel, choose_port, port_of, through_tunnel
    from provision.ways import describe

    target = find_target(name, name_option)
    if isinstance(target, LocalTarget):
        access = target.access()
        say(f"{target.name} runs on this machine: no tunnel is needed")
        if json:
            emit_json({"base_url": access.base_url, "argv": None, "way": "this machine"})
        else:
            emit(access.base_url)
        return
    access = target.access()
    remote_port = port_of(access.base_url)
    opened = Tunnel(shell_of(target, identity), choose_port(local_port, remote_port), remote_port)
    base_url = through_tunnel(access.base_url, opened.local_port)

    def show() -> None:
        if json:
            emit_json({"base_url": base_url, "argv": opened.argv, "way": describe(opened.shell.way)})
        else:
            emit(base_url)

    if dry_run:
        if json:
            show()
        else:
            emit(shlex.join(opened.argv))
        return

    def ready() -> None:
        show()
        say(f"the endpoint of {target.name} until Ctrl-C; key and model are the same")

    say(describe(opened.shell.way))
    try:
        opened.keep_open(ready, say)
    except KeyboardInterrupt:
        say("the tunnel is closed")
