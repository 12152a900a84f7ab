"""OpenSSH's command line, as pure functions: what to run for a shell, a command or a tunnel, and what a failure means.

Nothing of the user's own SSH set-up takes part (`-F /dev/null`): no `Host *` block, no known_hosts, no other key than
the deployment's where it has one. The host key is known before the first connection, and nothing is trusted on first
use.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from provision.errors import ConnectionFailedError

PORT = 22
CONNECT_TIMEOUT_S = 15
ALIVE_S = 15  # between two signs of life of an idle connection
ALIVE_MISSED = 4  # then it is given up
TRANSPORT_FAILED = 255  # ssh's exit status for its own failures; else it is the remote command's


@dataclass(frozen=True, slots=True)
class Login:
    """Where to log in and as whom, with everything that proves either side.

    `name`: the deployment's. `key`: file of the private key; None = the keys of the user's agent and home.
    `host_key`: "ssh-ed25519 AAAA…", what the machine must show. `known_hosts`: the file that OpenSSH finds it in.
    `proxy`: a command whose standard input and output are the connection; empty = TCP.
    """

    name: str
    user: str
    host: str
    host_key: str
    known_hosts: Path
    key: Path | None = None
    port: int = PORT
    proxy: tuple[str, ...] = ()

    @property
    def alias(self) -> str:
        """What the host key is looked up by: addresses change, and a tunnel's is 127.0.0.1."""
        return f"deployctl-{self.name}"

    @property
    def known_hosts_line(self) -> str:
        return f"{self.alias} {self.host_key}\n"

    @property
    def target(self) -> str:
        """For people: "ubuntu@203.0.113.7", with the port where it is not 22."""
        port = "" if self.port == PORT else f":{self.port}"
        return f"{self.user}@{bracketed(self.host)}{port}"


def bracketed(host: str) -> str:
    """An IPv6 address in brackets, as it stands before a port; anything else as it is."""
    return f"[{host}]" if ":" in host else host


def base_argv(login: Login) -> list[str]:
    """ssh with all options, without destination and command."""
    options = [
        f"UserKnownHostsFile={login.known_hosts}",
        "GlobalKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=yes",
        "UpdateHostKeys=no",
        f"HostKeyAlias={login.alias}",
        f"ConnectTimeout={CONNECT_TIMEOUT_S}",
        f"ServerAliveInterval={ALIVE_S}",
        f"ServerAliveCountMax={ALIVE_MISSED}",
        "PreferredAuthentications=publickey",
    ]
    if login.key is not None:
        options += ["IdentitiesOnly=yes", "IdentityAgent=none"]
    if login.proxy:
        options.append(f"ProxyCommand={shlex.join(login.proxy)}")
    argv = ["ssh", "-F", "/dev/null"]
    if login.key is not None:
        argv += ["-i", str(login.key)]
    for option in options:
        argv += ["-o", option]
    return [*argv, "-p", str(login.port), "-l", login.user]


def shell_argv(login: Login, command: Sequence[str] = (), *, terminal: bool = False) -> list[str]:
    """A shell, or `command` as one line of the remote shell. `terminal`: the command gets one too."""
    argv = base_argv(login)
    if not command:
        return [*argv, login.host]
    return [*argv, *(["-t"] if terminal else []), login.host, "--", shlex.join(command)]


def tunnel_argv(login: Login, local_port: int, remote_port: int) -> list[str]:
    """127.0.0.1:`local_port` here leads to 127.0.0.1:`remote_port` there, until ssh ends."""
    forward = f"127.0.0.1:{local_port}:127.0.0.1:{remote_port}"
    return [*base_argv(login), "-N", "-o", "ExitOnForwardFailure=yes", "-L", forward, login.host]


def fingerprint(host_key: str) -> str:
    """ "SHA256:…" of "ssh-ed25519 AAAA…", as `ssh-keygen -l` prints it. Raises ValueError."""
    parts = host_key.split()
    try:
        blob = base64.b64decode(parts[1], validate=True)
    except (IndexError, binascii.Error) as error:
        raise ValueError(f"{host_key!r} is not a public key") from error
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a connection failed, and the command that helps. `{name}`, `{host}`, `{user}`, `{port}`, `{key}` are filled
    in."""

    pattern: str  # regular expression over what ssh or the system said
    why: str
    next_command: str


_WHO_MAY = "deployctl redeploy {name} --allowed-cidrs <your address>/32"
_CAUSES = (
    Cause(
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key verification failed|host key .*(mismatch|does not match)|"
        r"No \S+ host key is known",
        "the machine shows another host key than the one that is pinned: it is another machine at this address, or "
        "somebody is in between",
        "deployctl status {name}",
    ),
    Cause(
        r"UNPROTECTED PRIVATE KEY FILE|bad permissions",
        "the key file may be read by others, so ssh does not use it",
        "chmod 600 {key}",
    ),
    Cause(
        r"Load key .*(No such file|Permission denied|invalid format|error in libcrypto)|no such identity|"
        r"not a valid .* private key|key file cannot be read",
        "the key file is missing, unreadable or no private key",
        "ls -l {key}",
    ),
    Cause(r"passphrase", "the key has a passphrase and no agent holds it", "ssh-add {key}"),
    Cause(
        r"Permission denied \(|Too many authentication failures|Authentication failed|No authentication methods",
        "the machine knows neither this user nor this key",
        "ssh-add -l, or another --identity; the user must be one that may log in",
    ),
    Cause(
        r"Could not resolve|Name or service not known|Temporary failure in name resolution|nodename nor servname",
        "the name {host} is not known here (names of ~/.ssh/config are not read)",
        "getent hosts {host}",
    ),
    Cause(
        r"Connection refused|Unable to connect to port",
        "nothing listens on port {port}: the machine is starting, or runs no SSH server",
        "deployctl status {name}",
    ),
    Cause(r"No route to host|Network is unreachable|Host is down", "there is no way to {host} from here", _WHO_MAY),
    Cause(
        r"timed out|Timeout",
        "nothing answers: a firewall or a security group does not let this address in, or the machine is off",
        _WHO_MAY,
    ),
    Cause(
        r"administratively prohibited|open failed",
        "the machine's SSH server does not allow forwarding",
        "sshd -T | grep allowtcpforwarding",
    ),
    Cause(
        r"Address already in use|cannot listen to port",
        "the local port is taken",
        "deployctl tunnel {name} --local-port 0",
    ),
    Cause(
        r"Connection (closed|reset)|Broken pipe|banner|kex_exchange_identification|EOF|not open",
        "the connection was cut before it was of use",
        "the same command again",
    ),
)


def explain(login: Login, said: str) -> ConnectionFailedError:
    """One error for whatever ssh or the system said: host, user, key, cause, next command."""
    names = {
        "name": login.name,
        "host": login.host,
        "user": login.user,
        "port": login.port,
        "key": login.key or "~/.ssh/id_ed25519",
    }
    key = f"key {login.key}" if login.key is not None else "the keys of your agent and ~/.ssh"
    what = f"no SSH connection to {login.target} with {key}"
    words = last_line(said)
    for cause in _CAUSES:
        if re.search(cause.pattern, said, re.IGNORECASE):
            return ConnectionFailedError(
                what,
                why=cause.why.format(**names) + (f"\nssh said: {words}" if words else ""),
                next_command=cause.next_command.format(**names),
            )
    return ConnectionFailedError(
        what, why=words or "ssh ended without a word", next_command=f"deployctl ssh {login.name} --dry-run"
    )


def is_transport_failure(said: str) -> bool:
    """Whether ssh's own words speak of the connection, and not of a remote command that ended with 255."""
    return any(re.search(cause.pattern, said, re.IGNORECASE) for cause in _CAUSES)


def last_line(said: str) -> str:
    lines = [line.strip().strip("@ ") for line in said.splitlines()]
    return next((line for line in reversed(lines) if line), "")
