"""The end of a server: what signals mean, and how requests that run come to their end.

SIGTERM, SIGINT    accepts no more, lets requests run for GRACE_S; the second time it ends at once
SIGUSR1            the same for `drain_max_s`: another server has taken over the socket
SIGHUP             starts that other server (under systemd, which knows no second one beside the first)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import uvicorn

from runtime.handover import BEGIN, HAND_OVER, PREDECESSOR, ProcessId, announce
from runtime.server.engine_client import EngineClient
from runtime.server.errors import SERVER, ApiError
from runtime.server.hold import Hold, wait_while
from runtime.server.http_protocol import BoundedProtocol

logger = logging.getLogger(__name__)

GRACE_S = 4.0  # after SIGTERM; the supervisor kills after 6 s
LAST_WORDS_S = 1.0  # for requests that were given up to write their error
LINGER_S = 0.5  # how long a connection must have been idle before a server that was replaced closes it
STEP_S = 0.02
_CHILD_STEP_S = 0.2


class DrainingProtocol(BoundedProtocol):
    """A connection that is idle when its server is replaced stays for a moment: a client that has just been answered
    may be writing its next request already, and would be reset. That request is answered, as the connection's last.
    """

    _draining = False
    _idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle_since = time.monotonic()

    @property
    def is_open(self) -> bool:
        """A request is being received or answered."""
        return self._in_head or (self.cycle is not None and not self.cycle.response_complete)

    @property
    def idle_s(self) -> float:
        """Seconds since the last answer, or since the connection was made; 0 while a request is open."""
        return 0.0 if self.is_open else time.monotonic() - self._idle_since

    def drain(self) -> None:
        """From now on each answer ends its connection, and says so in its head unless that has been sent. May be called
        again."""
        self._draining = True
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self._draining:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        self._idle_since = time.monotonic()
        super().on_response_complete()


class DrainingServer(uvicorn.Server):
    """`drain_max_s`: seconds that requests may go on after another server has taken over."""

    def __init__(self, config: uvicorn.Config, engine: EngineClient, hold: Hold, drain_max_s: float) -> None:
        super().__init__(config)
        self._engine = engine
        self._hold = hold
        self._drain_max_s = drain_max_s
        self._deadline = 0.0
        self._replaced = False
        self._successor: subprocess.Popen[bytes] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            announce()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(HAND_OVER, self._hand_over)
        loop.add_signal_handler(BEGIN, self._start_successor)
        yield

    def _end(self) -> None:
        if self.should_exit and not self._replaced:
            self.force_exit = True
        self.should_exit, self._replaced = True, False
        self._deadline = time.monotonic() + GRACE_S

    def _hand_over(self) -> None:
        if not self.should_exit:
            self.should_exit = self._replaced = True
            self._deadline = time.monotonic() + self._drain_max_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logger.info("Shutting down")
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        stopping = ApiError(503, "the server is stopping", code="stopping", kind=SERVER, headers={"Retry-After": "1"})
        if not self._replaced:
            self._hold.stop(stopping)
        await wait_while(lambda: self._drain() and not self.force_exit and time.monotonic() < self._deadline, STEP_S)
        if any(connection.is_open for connection in self._connections()):
            logger.warning("requests that still run are given up")
            self._hold.stop(stopping)
            self._engine.fail_all(stopping)
            over = time.monotonic() + (0.0 if self.force_exit else LAST_WORDS_S)
            await wait_while(lambda: self._drain() and time.monotonic() < over, STEP_S)
        for connection in self._connections():
            connection.transport.abort() if connection.is_open else connection.transport.close()
        await asyncio.sleep(0)
        for task in list(self.server_state.tasks):
            task.cancel()
        if self._watching is not None:
            self._watching.cancel()
        await self.lifespan.shutdown()

    def _drain(self) -> bool:
        """True while there is something to wait for."""
        waits = False
        for connection in self._connections():
            connection.drain()
            waits = waits or connection.is_open or (self._replaced and connection.idle_s < LINGER_S)
        return waits

    def _connections(self) -> list[DrainingProtocol]:
        return [item for item in self.server_state.connections if isinstance(item, DrainingProtocol)]

    def _start_successor(self) -> None:
        """The same command again, which goes through the link `current` to whatever is the release now."""
        if self._successor is not None and self._successor.poll() is None:
            logger.warning("the server that was to follow has not come up: it is ended, and another one started")
            self._successor.kill()
            self._successor.wait()
        me = ProcessId.of(os.getpid())
        environment = {name: value for name, value in os.environ.items() if name != "LISTEN_PID"}
        listening = [int(fd) for fd in range(3, 3 + int(os.environ.get("LISTEN_FDS", "0")))]
        try:
            self._successor = subprocess.Popen(
                own_command(), env={**environment, PREDECESSOR: str(me)}, pass_fds=listening, stdin=subprocess.DEVNULL
            )
        except OSError as error:
            logger.error("the server that was to follow cannot be started: %s", error)
            return
        self._watching = asyncio.create_task(self._watch(self._successor))

    async def _watch(self, successor: subprocess.Popen[bytes]) -> None:
        await wait_while(lambda: successor.poll() is None, _CHILD_STEP_S)
        logger.error("the server that was to follow ended with %s; this one goes on", successor.returncode)


def own_command() -> list[str]:
    """How this process was started, links in its path unresolved. A script is run by the interpreter that it names."""
    script = Path(sys.argv[0])
    if script.is_absolute() and os.access(script, os.X_OK):
        return sys.argv
    return [sys.executable, *sys.orig_argv[1:]]
