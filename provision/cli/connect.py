"""`deployctl connect`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli.names import NameArgument, NameOption, find_target
from provision.cli.output import JsonFlag, emit, emit_json, say
from provision.connect import GUIDES, Endpoint
from provision.errors import UsageError

if TYPE_CHECKING:
    from provision.target import Access

app = typer.Typer(add_completion=False)
CLIENTS = ", ".join(GUIDES)


def complete_client(incomplete: str) -> list[str]:
    """Clients for the shell's completion."""
    return [client for client in GUIDES if client.startswith(incomplete)]


@app.command()
def connect(
    client: Annotated[
        str, typer.Argument(metavar="CLIENT", help=f"{CLIENTS}.", autocompletion=complete_client, show_default=False)
    ],
    name: NameArgument = None,
    name_option: NameOption = None,
    show_key: Annotated[bool, typer.Option("--show-key", help="Write the API key into the text.")] = False,
    json: JsonFlag = False,
) -> None:
    """Print what a client needs to use the endpoint: settings, or a program that runs as it is.

    Without --show-key programs read the key from OPENAI_API_KEY. The certificate is trusted by its file.
    """
    make = GUIDES.get(client)
    if make is None:
        raise UsageError(
            f"no client is called {client!r}", why=f"there is: {CLIENTS}", next_command="deployctl connect openai"
        )
    target = find_target(name, name_option)
    guide = make(endpoint_of(target.name, target.access(), show_key=show_key))
    if json:
        emit_json(dataclasses.asdict(guide) | {"settings": dict(guide.settings)})
        return
    for note in guide.notes:
        say(note)
    emit(guide.text.rstrip("\n"))


def endpoint_of(name: str, access: Access, *, show_key: bool) -> Endpoint:
    """What a client must know; writes the certificate's files. Raises OSError."""
    pem = bundle = None
    if access.certificate is not None:
        from provision.trust import bundle_file, pin_file

        pem, bundle = pin_file(name, access.certificate), bundle_file(name, access.certificate)
    key = access.api_key if show_key else None
    return Endpoint(name, access.base_url, access.model, key, pem, bundle)
