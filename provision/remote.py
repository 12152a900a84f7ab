"""A machine over SSH, for programs: commands with their exit status, what they say as it comes, files as root
(provision.remote_files). paramiko; people's shells and tunnels are OpenSSH's (provision.ssh).

Every failure of the transport becomes one ConnectionFailedError; what a remote command says is no failure of it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import select
import shlex
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from provision.errors import MissingPartError, RemoteError, UsageError
from provision.ssh import ALIVE_S, CONNECT_TIMEOUT_S, Login, explain

if TYPE_CHECKING:
    from paramiko import Channel, MissingHostKeyPolicy, PKey, SFTPClient, SSHClient

    from provision.remote_files import Files

SFTP_SERVER = "/usr/lib/openssh/sftp-server"  # Debian's and Ubuntu's place
CHUNK = 256 * 1024
SILENCE_S = 60.0  # of a request that the other side does not answer
LOST = 255  # the exit status of a command that was ended by a signal, as OpenSSH has it
# Kinds of host keys, by their names in a file, with the names that each has in the key exchange.
KEY_KINDS: dict[str, tuple[str, ...]] = {
    "ssh-ed25519": ("ssh-ed25519",),
    "ecdsa-sha2-nistp256": ("ecdsa-sha2-nistp256",),
    "ecdsa-sha2-nistp384": ("ecdsa-sha2-nistp384",),
    "ecdsa-sha2-nistp521": ("ecdsa-sha2-nistp521",),
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"),
}


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    code: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "replace")

    @property
    def said(self) -> str:
        """Its last words: what it wrote on stderr, or else on stdout."""
        return (self.err or self.out).decode("utf-8", "replace").strip()


def check_parts() -> None:
    """Raises MissingPartError without paramiko."""
    try:
        import paramiko  # noqa: F401
    except ImportError as error:
        raise MissingPartError(
            "this installation of deployctl cannot reach machines over SSH",
            why="not installed: paramiko",
            next_command="pip install 'deployctl[host]'",
        ) from error
    # What it would write on stderr, tracebacks among it, is told by our errors.
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    logging.getLogger("paramiko").propagate = False


def connect(login: Login) -> Remote:
    """Opens the connection. Raises ConnectionFailedError, MissingPartError."""
    check_parts()
    import paramiko

    check_key_file(login)
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(_pinned(login))
    with failures(login):
        try:
            client.connect(
                login.host,
                login.port,
                login.user,
                key_filename=str(login.key) if login.key is not None else None,
                allow_agent=login.key is None,
                look_for_keys=login.key is None,
                timeout=CONNECT_TIMEOUT_S,
                banner_timeout=CONNECT_TIMEOUT_S,
                auth_timeout=SILENCE_S,
                channel_timeout=SILENCE_S,
                sock=paramiko.ProxyCommand(shlex.join(login.proxy)) if login.proxy else None,
                disabled_algorithms={"keys": _without([login.host_key.split()[0]])},
            )
        except Exception:
            client.close()
            raise
    transport = client.get_transport()
    assert transport is not None
    transport.set_keepalive(ALIVE_S)
    return Remote(login, client)


def check_key_file(login: Login) -> None:
    """What OpenSSH refuses and paramiko does not. Raises ConnectionFailedError."""
    if login.key is None:
        return
    try:
        mode = login.key.stat().st_mode
        readable = os.access(login.key, os.R_OK)
    except OSError as error:
        raise explain(login, f"key file cannot be read: {error}") from error
    if not readable:
        raise explain(login, f"key file cannot be read: {login.key}")
    if stat.S_IMODE(mode) & 0o077:
        raise explain(login, f"bad permissions {stat.S_IMODE(mode):04o} of {login.key}")


def read_host_key(host: str, port: int, wanted: Sequence[str] = ()) -> str:
    """The key that a machine shows, "ssh-ed25519 AAAA…", without logging in. `wanted`: kinds to ask for; empty = any.

    Raises OSError, and what paramiko raises, as EOFError or SSHException.
    """
    import socket

    check_parts()
    import paramiko

    with socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S) as plain:
        keys = {"keys": _without(wanted)} if wanted else None
        transport = paramiko.Transport(plain, disabled_algorithms=keys)
        try:
            transport.start_client(timeout=CONNECT_TIMEOUT_S)
            key = transport.get_remote_server_key()
        finally:
            transport.close()
    return f"{key.get_name()} {key.get_base64()}"


def _without(kinds: Sequence[str]) -> list[str]:
    """All other kinds, as the key exchange calls them: a machine has several keys, and one is asked for."""
    return [name for kind, names in KEY_KINDS.items() if kind not in kinds for name in names]


class Remote:
    """An open connection. A context manager; methods raise ConnectionFailedError when it breaks."""

    def __init__(self, login: Login, client: SSHClient) -> None:
        self.login = login
        self._client = client

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # An orderly end waits for the other side; whoever presses Ctrl-C does not, and the process's end closes it too.
        if kind is not KeyboardInterrupt:
            self.close()

    def close(self) -> None:
        self._client.close()

    @property
    def is_open(self) -> bool:
        transport = self._client.get_transport()
        return transport is not None and transport.is_active()

    def as_root(self, argv: Sequence[str]) -> list[str]:
        return list(argv) if self.login.user == "root" else ["sudo", "-n", *argv]

    def run(self, argv: Sequence[str], stdin: bytes = b"") -> Done:
        """Runs a command to its end."""
        out, err = io.BytesIO(), io.BytesIO()
        code = self.follow(argv, io.BytesIO(stdin), out.write, err.write)
        return Done(code, out.getvalue(), err.getvalue())

    def do(self, argv: Sequence[str], stdin: bytes = b"", *, what: str) -> Done:
        """Runs a command as root that must succeed; `what` it is for. Raises RemoteError."""
        done = self.run(self.as_root(argv), stdin)
        if done.code != 0:
            raise failed(self.login, what, done)
        return done

    def follow(
        self,
        argv: Sequence[str],
        stdin: IO[bytes] | None,
        out: Callable[[bytes], object],
        err: Callable[[bytes], object],
    ) -> int:
        """Runs a command and hands on what it says as it comes. Returns its exit status."""
        with self._channel(shlex.join(argv)) as channel:
            threading.Thread(target=_feed, args=(channel, stdin), daemon=True).start()
            while not _is_over(channel):
                select.select([channel], [], [], 0.5)
                while channel.recv_ready():
                    out(channel.recv(CHUNK))
                while channel.recv_stderr_ready():
                    err(channel.recv_stderr(CHUNK))
            code: int = channel.recv_exit_status()
            if code >= 0:
                return code
            if not self.is_open:
                raise explain(self.login, "Connection reset while a command ran")
            return LOST

    def lines(self, argv: Sequence[str]) -> Iterator[bytes]:
        """Whole lines of a command's stdout as they come. Raises RemoteError when it ends badly."""
        with self._channel(shlex.join(argv)) as channel:
            partial, said = b"", b""
            while not _is_over(channel):
                select.select([channel], [], [], 0.5)
                while channel.recv_stderr_ready():
                    said = (said + channel.recv_stderr(CHUNK))[-4096:]
                while channel.recv_ready():
                    *whole, partial = (partial + channel.recv(CHUNK)).split(b"\n")
                    yield from whole
            code = channel.recv_exit_status()
            if code < 0 and not self.is_open:
                raise explain(self.login, "Connection reset while a command ran")
            if code != 0:
                raise failed(self.login, argv[0], Done(code, b"", said))

    @contextmanager
    def _channel(self, command: str) -> Iterator[Channel]:
        with failures(self.login):
            transport = self._client.get_transport()
            if transport is None or not transport.is_active():
                raise EOFError("the connection is not open")
            channel = transport.open_session(timeout=SILENCE_S)
            try:
                channel.exec_command(command)
                yield channel
            except KeyboardInterrupt:
                raise
            except BaseException:
                channel.close()
                raise
            channel.close()

    @functools.cached_property
    def files(self) -> Files:
        """The machine's files, as root."""
        from provision.remote_files import Files

        return Files(self)

    def open_sftp(self) -> SFTPClient:
        """An SFTP server of its own under sudo. Raises RemoteError."""
        import paramiko

        with failures(self.login):
            transport = self._client.get_transport()
            if transport is None:
                raise EOFError("the connection is not open")
            channel = transport.open_session(timeout=SILENCE_S)
            channel.settimeout(SILENCE_S)
            channel.exec_command(shlex.join(self.as_root([SFTP_SERVER])))
            try:
                return paramiko.SFTPClient(channel)
            except (EOFError, paramiko.SSHException) as error:
                if not self.is_open:
                    raise
                said = channel.makefile_stderr("rb").read(4096)
                raise failed(self.login, "files as root", Done(1, b"", said)) from error


def failed(login: Login, what: str, done: Done) -> RemoteError:
    """The error of a command of ours that failed on the machine."""
    said = done.said
    if "password is required" in said or "a terminal is required" in said or "not in the sudoers" in said:
        return RemoteError(
            f"{login.user} may not become root on {login.host} without a password",
            why=said.splitlines()[-1],
            next_command=f"on that machine: echo '{login.user} ALL=(ALL) NOPASSWD: ALL' | "
            f"sudo tee /etc/sudoers.d/{login.user}",
        )
    if "sudo" in said and "not found" in said:
        return RemoteError(
            f"there is no sudo on {login.host}",
            why=said,
            next_command=f"on that machine, as root: apt-get install -y sudo; or --host root@{login.host}",
        )
    return RemoteError(f"{what} failed on {login.target}", why=said or f"exit status {done.code}")


def _is_over(channel: Channel) -> bool:
    ended = channel.exit_status_ready() and (channel.eof_received or channel.closed)
    return bool(ended and not channel.recv_ready() and not channel.recv_stderr_ready())


def _feed(channel: Channel, stdin: IO[bytes] | None) -> None:
    """In a thread of its own: a command that reads nothing must not keep its words from us."""
    with contextlib.suppress(OSError, EOFError):
        while stdin is not None and (data := stdin.read(CHUNK)):
            channel.sendall(data)
        channel.shutdown_write()


@contextmanager
def failures(login: Login) -> Iterator[None]:
    """What paramiko and the system raise for a connection becomes one error."""
    import paramiko

    try:
        yield
    except paramiko.PasswordRequiredException as error:
        raise explain(login, "the key needs a passphrase") from error
    except paramiko.AuthenticationException as error:
        raise explain(login, f"Authentication failed: {error}") from error
    except paramiko.SSHException as error:
        raise explain(login, str(error) or "the connection was closed") from error
    except EOFError as error:
        raise explain(login, str(error) or "EOF: Connection closed") from error
    except TimeoutError as error:
        raise explain(login, f"timed out: {error}") from error
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise explain(login, str(error)) from error


def _pinned(login: Login) -> MissingHostKeyPolicy:
    """paramiko's question about a host key, answered by the one that is known. Not its list of known hosts: that is
    looked up by address, and a tunnel's address is this machine's."""
    import paramiko

    class Pinned(paramiko.MissingHostKeyPolicy):
        def missing_host_key(self, client: SSHClient, hostname: str, key: PKey) -> None:
            if f"{key.get_name()} {key.get_base64()}" != login.host_key:
                raise paramiko.SSHException(f"host key of {hostname} does not match: it shows {key.fingerprint}")

    return Pinned()


def parse_host(text: str) -> tuple[str, str, int]:
    """(user, address, port) of "user@address", "user@address:2222" or "user@[::1]:22". Raises UsageError."""
    user, at, rest = text.strip().rpartition("@")
    host, port = rest, "22"
    if rest.startswith("["):
        host, _, after = rest[1:].partition("]")
        port = after.removeprefix(":") or "22"
    elif rest.count(":") == 1:
        host, _, port = rest.partition(":")
    if not at or not user or not host or not port.isdigit() or not 0 < int(port) < 65536 or host.startswith("-"):
        raise UsageError(
            f"host: {text!r} names no machine",
            why="write user@address or user@address:port; IPv6 as user@[2001:db8::7]:22",
            next_command="deployctl up --host ubuntu@203.0.113.7",
        )
    return user, host, int(port)
