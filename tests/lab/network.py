"""A guest's network: two namespaces and a cable between them. Nothing outside can be reached from either.

operator 203.0.113.1 (object store, package index, the test's own clients) ─┐
         169.254.169.254 or 100.100.100.200 (metadata service)             ─┴─ cable ─ guest 203.0.113.10

A namespace is held by one sleeping process and has no name: it ends with its holder, and the holder with the test
process, however that ends. So runs beside each other may use the same addresses.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler

from tests.lab.http_server import HttpServer

OPERATOR = "203.0.113.1"
GUEST = "203.0.113.10"
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, slots=True)
class Holder:
    """A sleeping process with namespaces of its own, network and mounts."""

    pid: int

    @contextmanager
    def network_entered(self) -> Iterator[None]:
        """This thread is in the holder's network; sockets, threads and processes made meanwhile stay there."""
        with open("/proc/thread-self/ns/net") as home, open(f"/proc/{self.pid}/ns/net") as away:
            set_namespace(away.fileno())
            try:
                yield
            finally:
                set_namespace(home.fileno())

    def nsenter(self, *argv: str) -> list[str]:
        """A command line that runs in the holder's mounts and network."""
        return ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", f"--net=/proc/{self.pid}/ns/net", "--", *argv]


@contextmanager
def hold() -> Iterator[Holder]:
    """New namespaces for as long as the context lasts. To be called from the main thread: they end with it."""
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--net", "--propagation", "private"]
    ready = ["sh", "-c", "echo; exec sleep infinity"]
    process = subprocess.Popen([*command, *ready], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"\n":
            raise RuntimeError("namespaces cannot be made (unshare --mount --net)")
        yield Holder(process.pid)
    finally:
        process.kill()
        process.wait()
        with contextlib.suppress(AttributeError):
            process.stdout.close()  # type: ignore[union-attr]


@dataclass(frozen=True, slots=True)
class Network:
    """`guest` also holds the guest's mounts; `operator` is where everything else of the test listens."""

    operator: Holder
    guest: Holder


@contextmanager
def network(metadata_address: str) -> Iterator[Network]:
    """A guest's network with a cloud's metadata address on the operator's side."""
    with ExitStack() as stack:
        operator, guest = stack.enter_context(hold()), stack.enter_context(hold())
        _ip("link", "add", "cable", "netns", str(operator.pid), "type", "veth", "peer", "eth0", "netns", str(guest.pid))
        for holder, device, addresses in (
            (operator, "cable", (f"{OPERATOR}/24", f"{metadata_address}/32")),
            (guest, "eth0", (f"{GUEST}/24",)),
        ):
            with holder.network_entered():
                for address in addresses:
                    _ip("address", "add", address, "dev", device)
                _ip("link", "set", device, "up")
                _ip("link", "set", "lo", "up")
        with guest.network_entered():
            _ip("route", "add", f"{metadata_address}/32", "dev", "eth0")
        yield Network(operator, guest)


@contextmanager
def serve_http(handler: type[BaseHTTPRequestHandler], host: str, port: int, operator: Holder) -> Iterator[int]:
    """An HTTP server in the operator's network, in threads of this process; its port (0 lets the kernel choose)."""
    with operator.network_entered():
        server = HttpServer(handler, host, port)
    with server:
        yield server.port


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def set_namespace(descriptor: int) -> None:
    """Puts this thread into a network. os.setns came with Python 3.12."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
