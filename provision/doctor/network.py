"""Ways to the endpoint: firewall, port, certificate."""

from __future__ import annotations

import ipaddress

from provision.doctor.evidence import STATUS, Evidence
from provision.doctor.rule import Rule, any_of, said, while_not_ready

SOON_DAYS = 14.0
EXPIRED = "certificate has expired"  # OpenSSL's words


def shut_out(evidence: Evidence) -> str | None:
    """No connection, and this machine's address is not among those that may connect."""
    probe, caller = evidence.endpoint, evidence.caller
    if probe is None or probe.refused is None or caller is None or not evidence.allowed_cidrs:
        return None
    address = ipaddress.ip_address(caller)
    if any(address in ipaddress.ip_network(cidr, strict=False) for cidr in evidence.allowed_cidrs):
        return None
    return f"{caller} is not in {', '.join(evidence.allowed_cidrs)} ({probe.refused})"


def filtered(evidence: Evidence) -> str | None:
    probe = evidence.endpoint
    if probe is None or probe.refused is None or not evidence.is_ready:
        return None
    lost = "timed out" in probe.refused or "unreachable" in probe.refused
    return f"the machine serves, and from here: {probe.refused}" if lost else None


def closed_port(evidence: Evidence) -> str | None:
    probe = evidence.endpoint
    if probe is None or probe.refused is None or not evidence.is_ready or "refused" not in probe.refused.lower():
        return None
    return probe.refused


def expired(evidence: Evidence) -> str | None:
    tls = evidence.endpoint.tls if evidence.endpoint is not None else None
    return tls if tls is not None and EXPIRED in tls else None


def expires_soon(evidence: Evidence) -> str | None:
    days = evidence.certificate_days
    return f"{days:.0f} days are left" if days is not None and 0 < days < SOON_DAYS else None


def wrong_certificate(evidence: Evidence) -> str | None:
    tls = evidence.endpoint.tls if evidence.endpoint is not None else None
    return tls if tls is not None and EXPIRED not in tls else None


def refused_key(evidence: Evidence) -> str | None:
    return "status 401 with deployctl's own key" if evidence.endpoint and evidence.endpoint.status == 401 else None


RULES = (
    Rule(
        "address-not-allowed",
        "endpoint: no connection; this address is not among allowed_cidrs",
        "the firewall (security group) does not let this machine's address in: it has changed, or never was in",
        "deployctl redeploy {name} --allowed-cidrs <this address>/32",
        shut_out,
    ),
    Rule(
        "way-closed",
        "endpoint: timeout, though the machine is ready",
        "something on the way drops the connection: a firewall here, a network ACL there, or an intranet "
        "endpoint from outside",
        "deployctl tunnel {name} goes another way; in a network of your own check routes and ACLs for the "
        "endpoint's port",
        filtered,
    ),
    Rule(
        "port-closed",
        "endpoint: connection refused, though the machine is ready",
        "nothing listens on the endpoint's port",
        "deployctl exec {name} -- systemctl status deployctl.socket deployctl-server; deployctl redeploy {name} "
        "opens it again",
        closed_port,
    ),
    Rule(
        "port-taken",
        "status or agent: the port is taken",
        "another program of the machine holds the endpoint's port",
        "deployctl down {name}, then up with --port <another>; or stop what holds it (ss -ltnp)",
        while_not_ready(said(r"Address already in use|port \d+ is taken|\[Errno 98\]|cannot listen on")),
    ),
    Rule(
        "certificate-expired",
        "certificate: not valid any more",
        "the endpoint's certificate has expired",
        "deployctl redeploy {name}: a certificate of deployctl's own is made anew; tls: own needs your new files",
        any_of(expired, said(EXPIRED, STATUS)),
    ),
    Rule(
        "certificate-refused-by-authority",
        "agent or server: ACME errors of Caddy",
        "the certificate authority does not believe that the domain is this machine's, or has had enough of asking",
        "point the domain's A record at the endpoint's address, keep port 80 open to everybody, wait an hour "
        "after too many tries",
        while_not_ready(
            said(
                r"acme.*(?:error|failed|rateLimited|NXDOMAIN|unauthorized)|shows no valid certificate",
                STATUS,
                "server",
                "agent",
            )
        ),
    ),
    Rule(
        "certificate-of-another-machine",
        "endpoint: the TLS handshake fails",
        "whoever answers at the address does not show the certificate of this deployment's machine",
        "deployctl status {name}; on an own domain check its A record; never switch the check off",
        wrong_certificate,
    ),
    Rule(
        "key-refused",
        "endpoint: 401",
        "the machine does not know deployctl's own key",
        "deployctl keys rotate default {name}",
        refused_key,
    ),
    Rule(
        "certificate-ends-soon",
        "certificate: less than 14 days",
        "the endpoint's certificate ends soon",
        "deployctl redeploy {name} makes a new one; tls: own needs your new files",
        expires_soon,
    ),
)
