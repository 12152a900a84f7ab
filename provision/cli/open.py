"""`deployctl open`."""

from __future__ import annotations

from typing import Annotated

import typer

from provision.cli.names import NameArgument, NameOption, find_target
from provision.cli.output import JsonFlag, emit, emit_json, say

app = typer.Typer(add_completion=False)


@app.command("open")
def open_(
    name: NameArgument = None,
    name_option: NameOption = None,
    print_: Annotated[bool, typer.Option("--print", help="Print the address and open nothing.")] = False,
    json: JsonFlag = False,
) -> None:
    """Open the playground in a browser, and print its address. It asks for the API key and keeps it there."""
    import webbrowser

    target = find_target(name, name_option)
    access = target.access()
    url = access.base_url.removesuffix("v1")
    shown = None if access.certificate is None else fingerprint(access.certificate)
    opened = False if print_ or json else webbrowser.open(url)
    if json:
        emit_json({"url": url, "opened": opened, "certificate_sha256": shown})
        return
    say(f"it asks for a key: `deployctl endpoint {target.name}` prints yours, `deployctl keys add` makes another")
    if shown is not None:
        say("a browser does not know the certificate; accept it only if it shows this SHA-256 fingerprint:")
        say(f"  {shown}")
        say(f"or let `deployctl tunnel {target.name}` lead there, which knows it")
    emit(url)


def fingerprint(certificate: str) -> str:
    """SHA-256 of a certificate in PEM, as browsers show it: "AB:01:…"."""
    import hashlib
    import ssl

    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.strip())).hexdigest().upper()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))
