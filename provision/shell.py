"""The machine of a deployment as one logs in to it: which way leads there, and what proves either side.

shell_of(target) ─► Shell(way, login) ─► reached(shell) ─► a Login that OpenSSH and paramiko can use now
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from provision import process
from provision.errors import ConnectionFailedError, NotRunningError, UsageError
from provision.ssh import PORT, TRANSPORT_FAILED, Login, explain, is_transport_failure
from provision.trust import known_hosts_file, ssh_key_file
from provision.ways import CloudAssistant, Direct, Way, choose_way, describe, forward_argv, proxy_argv, require_tools

if TYPE_CHECKING:
    from provision.cloud import CloudTarget
    from provision.target import Deployed

LOOPBACK = "127.0.0.1"
FORWARD_S = 30.0  # until a port forwarding of a cloud's tool listens
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Shell:
    """`login` of a machine behind Cloud Assistant has no port yet: `reached` opens one."""

    way: Way
    login: Login


def shell_of(target: Deployed, identity: Path | None = None) -> Shell:
    """How to log in to the deployment's machine. `identity`: a private key to use in place of the deployment's.

    Raises UsageError for a deployment on this machine, NotRunningError, CloudError, StateError.
    """
    from provision.host import HostTarget
    from provision.local import LocalTarget

    if isinstance(target, LocalTarget):
        raise UsageError(
            f"{target.name} runs on this machine: there is nothing to connect to",
            why="its processes are yours; its folder is under ~/.local/state/deployctl",
            next_command=f"deployctl status {target.name}",
        )
    from provision.cloud import CloudTarget

    if isinstance(target, HostTarget):
        return Shell(Direct(target.record.address), target.login(identity))
    if not isinstance(target, CloudTarget):
        raise UsageError(f"{target.name} has no machine that can be logged in to")
    return cloud_shell(target, identity)


def cloud_shell(target: CloudTarget, identity: Path | None) -> Shell:
    """Raises NotRunningError where there is no machine or it has said nothing yet, CloudError where the mailbox, which
    has its host key, cannot be read."""
    from provision.cloud import unread
    from runtime.bucket import BucketError

    exports, spec = target.exports, target.spec()
    if spec is None or exports.instance_id is None or exports.region is None or exports.ssh_user is None:
        raise NotRunningError(f"{target.name} has no machine", next_command=f"deployctl up --name {target.name}")
    try:
        found = target.identity()
    except BucketError as error:
        raise unread(target.name, error, "host key") from error
    if found is None or found.ssh_host_key is None:
        raise NotRunningError(
            f"{target.name} has not published its SSH host key yet",
            why="it does so once its server listens; until then nothing could tell it from another machine",
            next_command=f"deployctl status {target.name}",
        )
    way = choose_way(
        "aws" if spec.cloud == "aws" else "alicloud",
        exports.region,
        exports.instance_id,
        public_ip=exports.public_ip,
        private_ip=exports.private_ip,
        own_network=spec.vpc_id is not None,
    )
    key = identity or own_key(target.name, exports.ssh_private_key, spec.ssh_public_key)
    login = Login(
        name=target.name,
        user=exports.ssh_user,
        host=way.address if isinstance(way, Direct) else exports.instance_id,
        host_key=found.ssh_host_key,
        known_hosts=Path(os.devnull),
        key=key,
        proxy=proxy_argv(way),
    )
    return Shell(way, replace(login, known_hosts=known_hosts_file(target.name, login.known_hosts_line)))


def own_key(name: str, private_key: str | None, public_key: str | None) -> Path | None:
    """The file of the deployment's key. A user who brought a public key keeps the private one: beside a .pub file, or
    in the agent."""
    if private_key is not None:
        return ssh_key_file(name, private_key)
    if public_key is not None and public_key.endswith(".pub"):
        beside = Path(public_key).expanduser().with_suffix("")
        return beside if beside.is_file() else None
    return None


@contextmanager
def reached(shell: Shell) -> Iterator[Login]:
    """A login that can be connected to for as long as the context lasts. Raises MissingPartError,
    ConnectionFailedError."""
    require_tools(shell.way)
    if not isinstance(shell.way, CloudAssistant):
        yield shell.login
        return
    port = any_port()
    with forwarding(shell, port, PORT):
        yield replace(shell.login, host=LOOPBACK, port=port)


@contextmanager
def forwarding(shell: Shell, local_port: int, remote_port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Alibaba Cloud's own forwarding, once it listens. Raises ConnectionFailedError with its last words."""
    assert isinstance(shell.way, CloudAssistant)
    with tempfile.TemporaryFile() as said:
        argv = forward_argv(shell.way, local_port, remote_port)
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
        try:
            deadline = time.monotonic() + FORWARD_S
            while not is_listening(local_port):
                if child.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    words = said.read().decode("utf-8", "replace").strip()
                    raise ConnectionFailedError(
                        f"ali-instance-cli opens no port to {shell.way.instance_id}",
                        why=f"{words[-400:] or 'it said nothing'}\n{describe(shell.way)}",
                        next_command="ali-instance-cli configure",
                    )
                time.sleep(POLL_S)
            yield child
        finally:
            child.terminate()
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def any_port() -> int:
    """A port of this machine that nobody has, as the kernel chooses."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def is_listening(port: int) -> bool:
    return not process.is_port_free(LOOPBACK, port)


def run_openssh(argv: Sequence[str], login: Login) -> int:
    """ssh on this terminal, until it ends; its exit status. What it says of the connection goes into a file, from which
    one clear error is made. Raises ConnectionFailedError, MissingPartError (by `require_tools`, before)."""
    with openssh_log() as log:
        child = subprocess.Popen(logged(argv, log))
        code = wait_through_interrupts(child)
        words = log.read_text(errors="replace")
    if code == TRANSPORT_FAILED and is_transport_failure(words):
        raise explain(login, words)
    if words.strip() and code == TRANSPORT_FAILED:
        sys.stderr.write(words)
    return code


def run_session(argv: Sequence[str]) -> int:
    """A cloud's own shell on this terminal, until it ends; its exit status."""
    return wait_through_interrupts(subprocess.Popen(argv))


@contextmanager
def openssh_log() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="deployctl-ssh-") as folder:
        path = Path(folder) / "log"
        path.touch()
        yield path


def logged(argv: Sequence[str], log: Path) -> list[str]:
    """The same ssh with its own words in a file."""
    return [argv[0], "-E", str(log), *argv[1:]]


def wait_through_interrupts(child: subprocess.Popen[bytes]) -> int:
    """Ctrl-C reaches the child by itself: it is in the terminal's group too."""
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            return child.wait()
