"""The proof that an endpoint is reachable by those who may reach it, and by nobody else.

Each question has the answer yes, no or unknown: what cannot be tried from here is unknown, never no.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from provision.client import OpenAIClient, pinned_context
from provision.errors import EndpointError
from provision.target import Access, Observation

Answer = Literal["yes", "no", "unknown"]
TIMEOUT_S = 10.0
COMPLETION = "a completion with the key is answered"
REFUSAL = "a request with a wrong key is refused"
CLOSED = "closed to everybody else"


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer; `detail` says how it is known, or why not."""

    question: str
    answer: Answer
    detail: str

    def __str__(self) -> str:
        return f"{self.answer:<8} {self.question}{': ' if self.detail else ''}{self.detail}"


def prove_reach(
    access: Access,
    seen: Observation,
    *,
    allowed_cidrs: Sequence[str],
    intranet: bool,
    complete: Callable[[Access], str],
    caller: str | None,
) -> tuple[Check, ...]:
    """Asks the endpoint from here. `complete` is one completion with the key, and returns its text. `caller`: this
    machine's public address, None = not known.

    An intranet endpoint that is closed from here is as it should be where this machine is not in its network.
    """
    host, port = address_of(access.base_url)
    refused = connect(host, port)
    if refused is None:
        asked: tuple[Check, ...] = (_tls(access, host, port), _completion(access, complete), _refusal(access))
    else:
        asked = tuple(
            Check(question, "unknown", "no connection from here")
            for question in (_tls_question(access), COMPLETION, REFUSAL)
        )
    return (
        _tcp(refused, host, port, intranet=intranet),
        *asked,
        _closed(refused is None, is_allowed(caller, allowed_cidrs), allowed_cidrs, intranet=intranet),
        own_check(seen),
    )


def address_of(base_url: str) -> tuple[str, int]:
    parts = urlsplit(base_url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def connect(host: str, port: int) -> str | None:
    """None when a TCP connection opens, else why not."""
    try:
        socket.create_connection((host, port), timeout=TIMEOUT_S).close()
    except OSError as error:
        return str(error) or type(error).__name__
    return None


def is_allowed(address: str | None, cidrs: Iterable[str]) -> bool | None:
    """Whether an address lies in one of the ranges; None when the address is not known."""
    if address is None:
        return None
    found = ipaddress.ip_address(address)
    return any(found in ipaddress.ip_network(cidr) for cidr in cidrs)


def own_check(seen: Observation) -> Check:
    """What the machine's own completion through its port said."""
    question = "the machine's own completion through its port was answered"
    if seen.life == "ready":
        return Check(question, "yes", "its status is ready")
    if seen.life == "failed":
        return Check(question, "no", seen.error or "its status is failed")
    return Check(question, "unknown", f"its status is {seen.life}")


def _tcp(refused: str | None, host: str, port: int, *, intranet: bool) -> Check:
    question = f"TCP {host}:{port} is open from here"
    if refused is None:
        return Check(question, "yes", "")
    if intranet:
        return Check(question, "unknown", f"it is reached from inside its network only ({refused})")
    return Check(question, "no", refused)


def _closed(connected: bool, allowed: bool | None, cidrs: Sequence[str], *, intranet: bool) -> Check:
    """`allowed`: whether this machine's address is one of those that may connect, None = not known."""
    ranges = ", ".join(cidrs) or "nobody"
    if not connected and (intranet or allowed is False):
        return Check(CLOSED, "yes", f"this machine is not in {ranges} and is kept out")
    if connected and allowed is False:
        return Check(CLOSED, "no", f"this machine is not in {ranges} and was let in")
    why = f"this machine is let in as one of {ranges}" if connected else "no connection from here"
    return Check(CLOSED, "unknown", f"{why}; nobody outside could be asked")


def _tls_question(access: Access) -> str:
    return "TLS shows the machine's own certificate" if access.certificate else "TLS shows a certificate to trust"


def _tls(access: Access, host: str, port: int) -> Check:
    question = _tls_question(access)
    if not access.base_url.startswith("https:"):
        return Check(question, "no", "the endpoint speaks http: anybody on the way can read key and text")
    try:
        context = pinned_context(access.certificate) if access.certificate else ssl.create_default_context()
        with socket.create_connection((host, port), timeout=TIMEOUT_S) as plain:
            context.wrap_socket(plain, server_hostname=host).close()
    except (OSError, EndpointError) as error:
        return Check(question, "no", str(error))
    return Check(question, "yes", "")


def _completion(access: Access, complete: Callable[[Access], str]) -> Check:
    try:
        text = complete(access)
    except EndpointError as error:
        return Check(COMPLETION, "no", str(error))
    return Check(COMPLETION, "yes", " ".join(text.split())[:60])


def _refusal(access: Access) -> Check:
    try:
        with OpenAIClient(access.base_url, "no-key", access.certificate) as client:
            status = client.status_of("models")
    except EndpointError as error:
        return Check(REFUSAL, "unknown", str(error))
    return Check(REFUSAL, "yes" if status in (401, 403) else "no", f"status {status}")
