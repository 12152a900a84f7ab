"""TLS of the endpoint: the machine's certificate, read once when the server starts."""

from __future__ import annotations

import ssl
from pathlib import Path

from runtime.deployment import Listen

CERTIFICATE, KEY = "certificate.pem", "key.pem"
ON_THE_SOCKET = ("pinned", "own")  # with `acme` a proxy in front of the server has the certificate


class TlsError(Exception):
    """The endpoint must not be served in clear, and cannot be served over TLS."""


def server_context(listen: Listen, folder: Path | None) -> ssl.SSLContext | None:
    """None where the socket carries plain HTTP. `folder` holds certificate.pem and key.pem. Raises TlsError.

    Python's defaults for a server are TLS 1.2 and newer with forward secrecy; renegotiation and compression are off.
    """
    if listen.tls not in ON_THE_SOCKET:
        return None
    if folder is None:
        raise TlsError(f"tls is {listen.tls}, but no folder of certificates is given")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    except (OSError, ssl.SSLError) as error:
        raise TlsError(f"{folder}: {error}") from error
    return context
