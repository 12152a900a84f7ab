"""The public address of this machine: who may connect to a new endpoint when nobody says otherwise.

Two independent services are asked over https, and must agree. Nothing is cached: the answer is stored once, in the
stack's config.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from provision.errors import UsageError

SERVICES = ("https://checkip.amazonaws.com", "https://api.ipify.org", "https://icanhazip.com")
NEEDED = 2  # services that must agree
TIMEOUT_S = 10.0
OPTION = "--allowed-cidrs <address>/32"

Fetch = Callable[[str], str]


def caller_cidr(environ: Mapping[str, str], *, fetch: Fetch | None = None, services: Sequence[str] = SERVICES) -> str:
    """ "203.0.113.7/32". Raises UsageError that names --allowed-cidrs: in CI, and where the address is not certain."""
    if environ.get("CI"):
        raise UsageError(
            "in CI nobody's own address is known to be the one that will connect",
            why="the variable CI is set, and the spec has no allowed_cidrs",
            next_command=f"the same command with {OPTION}",
        )
    with ThreadPoolExecutor(len(services)) as pool:
        answers = list(pool.map(lambda url: ask(url, fetch or fetch_text), services))
    addresses = [answer for answer in answers if isinstance(answer, ipaddress.IPv4Address)]
    agreed = {address for address in addresses if addresses.count(address) >= NEEDED}
    if len(agreed) == 1 and len(set(addresses)) == 1:
        return f"{agreed.pop()}/32"
    told = [f"{url}: {answer}" for url, answer in zip(services, answers, strict=True)]
    raise UsageError(
        "the public address of this machine is not certain",
        why="\n".join(told),
        next_command=f"the same command with {OPTION}",
    )


def ask(url: str, fetch: Fetch) -> ipaddress.IPv4Address | str:
    """The address that a service sees, or why there is none."""
    try:
        said = fetch(url).strip()
    except OSError as error:
        return str(error) or type(error).__name__
    try:
        address = ipaddress.ip_address(said)
    except ValueError:
        return f"answered {said[:40]!r}, which is no address"
    if isinstance(address, ipaddress.IPv6Address):
        return f"{address} is IPv6, and the endpoint has an IPv4 address"
    return address if address.is_global else f"{address} is no public address"


def fetch_text(url: str) -> str:
    """The body of a page. Proxies of the environment count: what they show is what the endpoint will see. Raises
    OSError."""
    import httpx

    try:
        response = httpx.get(url, timeout=TIMEOUT_S, follow_redirects=True)
        response.raise_for_status()
    except httpx.HTTPError as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    return response.text
