"""A tunnel to an endpoint: a port of this machine that leads to the deployment's, kept open until it is ended."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from provision import process
from provision.errors import ConnectionFailedError, PortTakenError
from provision.shell import LOOPBACK, Shell, any_port, forwarding, is_listening, logged, openssh_log
from provision.ssh import explain, tunnel_argv
from provision.ways import CloudAssistant, forward_argv, require_tools

OPEN_S = 60.0  # until ssh listens: through a cloud's tunnel it takes its time
POLL_S = 0.05
PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0)  # before it is opened again; the last one again and again


@dataclass(frozen=True, slots=True)
class Tunnel:
    """127.0.0.1:`local_port` here, 127.0.0.1:`remote_port` there."""

    shell: Shell
    local_port: int
    remote_port: int

    @property
    def argv(self) -> list[str]:
        if isinstance(self.shell.way, CloudAssistant):
            return forward_argv(self.shell.way, self.local_port, self.remote_port)
        return tunnel_argv(self.shell.login, self.local_port, self.remote_port)

    def keep_open(self, opened: Callable[[], None], report: Callable[[str], None]) -> None:
        """Until KeyboardInterrupt. `opened` is called when it can be used for the first time. A connection that breaks
        is opened again; one that never opened raises ConnectionFailedError, MissingPartError."""
        require_tools(self.shell.way)
        failures, ever = 0, False

        def first() -> None:
            nonlocal failures, ever
            failures = 0
            if not ever:
                opened()
            else:
                report("the tunnel is open again")
            ever = True

        while True:
            try:
                self._hold(first)
            except ConnectionFailedError as error:
                if not ever:
                    raise
                pause = PAUSES_S[min(failures, len(PAUSES_S) - 1)]
                failures += 1
                report(f"the tunnel broke ({(error.why or error.what).splitlines()[0]}); again in {pause:.0f} s")
                time.sleep(pause)

    def _hold(self, opened: Callable[[], None]) -> None:
        """One connection, until it breaks: always ends with an exception."""
        if isinstance(self.shell.way, CloudAssistant):
            with forwarding(self.shell, self.local_port, self.remote_port) as child:
                opened()
                child.wait()
            raise ConnectionFailedError("the port forwarding of ali-instance-cli ended")
        with openssh_log() as log:
            child = subprocess.Popen(logged(self.argv, log), stdin=subprocess.DEVNULL, start_new_session=True)
            try:
                deadline = time.monotonic() + OPEN_S
                while child.poll() is None and not is_listening(self.local_port):
                    if time.monotonic() > deadline:
                        raise explain(self.shell.login, "timed out")
                    time.sleep(POLL_S)
                if child.poll() is None:
                    opened()
                child.wait()
                raise explain(self.shell.login, log.read_text(errors="replace"))
            finally:
                child.terminate()
                child.wait()


def choose_port(asked: int | None, wanted: int) -> int:
    """`asked` if it is free (0 = any); without it `wanted`, or another. Raises PortTakenError."""
    if asked:
        if process.is_port_free(LOOPBACK, asked):
            return asked
        owner = process.port_owner(asked)
        raise PortTakenError(
            f"port {asked} of this machine is taken",
            why=f"{owner} listens there" if owner else None,
            next_command="the same command with --local-port 0",
        )
    if asked is None and process.is_port_free(LOOPBACK, wanted):
        return wanted
    return any_port()


def through_tunnel(base_url: str, local_port: int) -> str:
    """The endpoint's base URL as it is at this end of the tunnel."""
    parts = urlsplit(base_url)
    return urlunsplit(parts._replace(netloc=f"{LOOPBACK}:{local_port}"))


def port_of(base_url: str) -> int:
    parts = urlsplit(base_url)
    return parts.port or (443 if parts.scheme == "https" else 80)
