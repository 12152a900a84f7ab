"""`tls: acme`: Caddy, from the distribution, in front of the server.

    authority ──► :80  ┐
    clients ──► :port  ┴─ Caddy, with the certificate ──► 127.0.0.1:INNER_PORT, deployctl.socket

Caddy gets and renews the certificate by itself. The machine is ready only when it shows a valid one.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import socket
import ssl
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from runtime.agent.install import Call, run_command
from runtime.agent.packages import install_packages
from runtime.agent.status import PhaseError, Report
from runtime.agent.worker import WorkerError
from runtime.mailbox import write_atomic

CADDYFILE = Path("/etc/caddy/Caddyfile")
UNIT = "caddy.service"
PACKAGE = "caddy"
INNER_PORT = 18000
LOOPBACK = "127.0.0.1"
MARK = "# Written by deployctl"
HANDSHAKE_TIMEOUT_S = 5.0


def domains_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """The host names among a certificate's names: what an authority vouches for. Raises PhaseError without any."""
    found = tuple(name for name in names if not _is_address(name))
    if not found:
        raise PhaseError("tls is acme, but no domain is given", "set domain, and run `deployctl up` again", retry=False)
    return found


def caddyfile(domains: tuple[str, ...], port: int) -> str:
    from jinja2 import StrictUndefined, Template

    text = resources.files("templates").joinpath("Caddyfile.j2").read_text("utf-8")
    template: Template = Template(text, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    rendered: str = template.render(domains=domains, port=port, inner_port=INNER_PORT)
    return rendered


@dataclass(frozen=True, slots=True)
class Front:
    """Caddy on this machine. Every method is safe to repeat."""

    state: Path
    call: Call = run_command
    config: Path = CADDYFILE

    def install(self, proxy: str | None, report: Report) -> None:
        """Raises PhaseError."""
        if shutil.which("caddy") is not None:
            return
        log = self.state / "apt.log"
        try:
            install_packages((PACKAGE,), log, proxy, report)
        except WorkerError as error:
            hint = f"tls: acme needs the distribution's package {PACKAGE}; see {log} on the machine"
            raise PhaseError(f"apt-get install {PACKAGE}: {error.error}", hint) from error

    def open(self, domains: tuple[str, ...], port: int) -> None:
        """Clients reach the server through Caddy on `port`. Raises InstallError."""
        text = caddyfile(domains, port)
        changed = self._content() != text
        if changed:
            self.config.parent.mkdir(parents=True, exist_ok=True)
            new = self.config.with_name(f".{self.config.name}.new")
            write_atomic(new, text.encode())
            os.chmod(new, 0o644)
            os.replace(new, self.config)
        self.call(("systemctl", "enable", UNIT))
        self.call(("systemctl", "restart" if changed else "start", UNIT))

    def close(self) -> None:
        """Gives the port back, if a release before this one had Caddy. Raises InstallError."""
        if not self._content().startswith(MARK):
            return
        self.call(("systemctl", "disable", "--now", UNIT))
        self.config.unlink()

    def _content(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self.config.read_text()
        return ""


def certificate_error(domain: str, port: int, context: ssl.SSLContext | None = None) -> str | None:
    """What a client of `domain` would object to on `port` of this machine; None when nothing. `context`: whom to
    trust, by default what the system does."""
    context = context or ssl.create_default_context()
    try:
        with (
            socket.create_connection((LOOPBACK, port), timeout=HANDSHAKE_TIMEOUT_S) as raw,
            context.wrap_socket(raw, server_hostname=domain),
        ):
            return None
    except (OSError, ssl.SSLError) as error:
        return f"no valid certificate for {domain} yet ({error}); its DNS record must name this machine"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
