"""A real sshd on this machine's loopback, for tests: own host keys, one user's key, own configuration."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from provision.ssh import Login

SSHD = "/usr/sbin/sshd"
START_S = 20.0
CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_ed25519
HostKey {folder}/host_ecdsa
PidFile none
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
Subsystem sftp internal-sftp
LogLevel VERBOSE
{more}
"""


def require_sshd() -> None:
    """Skips the test where no sshd is installed; on CI that is a failure."""
    missing = [tool for tool in ("ssh", "ssh-keygen", SSHD) if shutil.which(tool) is None]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"CI must have {', '.join(missing)}: apt-get install openssh-server openssh-client")
    if missing:
        pytest.skip(f"{', '.join(missing)} missing: apt-get install openssh-server openssh-client")


@dataclass(slots=True)
class Sshd:
    """`folder` holds keys and `log`."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    host_key: str
    ecdsa_host_key: str

    def login(self, name: str = "lab") -> Login:
        """As the user of this process, with the key that is let in."""
        login = Login(
            name=name,
            user=getpass.getuser(),
            host="127.0.0.1",
            port=self.port,
            host_key=self.host_key,
            known_hosts=self.folder / "known_hosts",
            key=self.folder / "user_key",
        )
        login.known_hosts.write_text(login.known_hosts_line)
        return login

    def cut(self) -> None:
        """The end of the connections that are open."""
        for child in children(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def stop(self) -> None:
        """No new connections, and the end of those that are open."""
        self.cut()
        self.process.kill()
        self.process.wait()


def children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            found += [*children(int(child)), int(child)]
    return found


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> str:
    """Writes a key pair; returns the public part without its comment."""
    argv = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "", "-f", str(path)]
    subprocess.run(argv, check=True)
    return " ".join(path.with_name(path.name + ".pub").read_text().split()[:2])


@contextmanager
def serve_ssh(folder: Path, more: str = "", port: int | None = None) -> Iterator[Sshd]:
    """`more`: lines of sshd_config. Keys of an earlier server in the same folder are used again."""
    require_sshd()
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind in (("host_ed25519", "ed25519"), ("host_ecdsa", "ecdsa"), ("user_key", "ed25519")):
        if not (folder / name).exists():
            make_key(folder / name, kind)
    (folder / "authorized_keys").write_text((folder / "user_key.pub").read_text())
    port = port or free_port()
    (folder / "config").write_text(CONFIG.format(port=port, folder=folder, more=more))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd drops its privileges
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "config")], stdout=log, stderr=log)
    keys = [" ".join((folder / f"{name}.pub").read_text().split()[:2]) for name in ("host_ed25519", "host_ecdsa")]
    server = Sshd(folder, port, process, *keys)
    try:
        _wait_until_open(server)
        yield server
    finally:
        server.stop()


def _wait_until_open(server: Sshd) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
            return
        except OSError:
            said = (server.folder / "log").read_text(errors="replace")
            assert server.process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
