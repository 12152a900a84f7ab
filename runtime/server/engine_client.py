"""The server's side of the engine's socket: connects, connects again, and hands each request its outputs.

    engine ──frames──► EngineClient ──Output──► Inbox of the HTTP request ──► its handler

An engine that dies, or is silent for too long, fails every open request at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from runtime.ipc import (
    PROTOCOL,
    SOCKET_NAME,
    Abort,
    Frame,
    FrameBuffer,
    FrameError,
    Gpus,
    GpuUse,
    Heartbeat,
    Hello,
    Output,
    Outputs,
    Progress,
    Ready,
    Stats,
    Submit,
    decode_to_server,
    pack,
)
from runtime.server import limits
from runtime.server.errors import ApiError, engine_lost, overloaded

logger = logging.getLogger(__name__)

RECONNECT_S = 0.1
GPUS_FRESH_S = 30.0
DEFAULT_HANG_AFTER_S = 5.0  # until the engine's first heartbeat says better
_LOST = "the engine stopped while it worked on this request; it restarts by itself, send the request again"
_HUNG = "the engine has made no step for too long; send the request again later"


class ClientGoneError(Exception):
    """The HTTP client closed the connection."""


class Inbox:
    """Outputs of one HTTP request in order of arrival. At most one reader waits at a time."""

    __slots__ = ("_failure", "_outputs", "_waiter", "open_ids", "prompt_tokens")

    def __init__(self, submits: Sequence[Submit]) -> None:
        self.open_ids = {submit.id for submit in submits}
        self.prompt_tokens = sum(len(submit.prompt) for submit in submits)
        self._outputs: list[Output] = []
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def push(self, output: Output) -> None:
        self._outputs.append(output)
        self._wake()

    def fail(self, error: Exception) -> None:
        """The first failure stays; outputs that came before it are still delivered."""
        if self._failure is None:
            self._failure = error
        self._wake()

    async def take(self) -> list[Output]:
        """Everything that has arrived; waits until there is something. Raises what `fail` was given."""
        if not self._outputs and self._failure is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._outputs:
            outputs, self._outputs = self._outputs, []
            return outputs
        assert self._failure is not None
        raise self._failure

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class EngineClient:
    """One connection to the engine of `release`, kept up for ever.

    Invariant: every id in `_inboxes` was submitted on the connection that is open now.
    """

    def __init__(self, run_dir: Path, release: str, max_num_seqs: int) -> None:
        self._run_dir = run_dir
        self._release = release
        self._max_open = max_num_seqs + limits.MAX_QUEUED
        self._transport: asyncio.WriteTransport | None = None
        self._inboxes: dict[str, Inbox] = {}
        self._open_tokens = 0
        self._max_open_tokens = limits.MAX_QUEUED_TOKENS  # until the engine says how long its context is
        self._last_frame = time.monotonic()
        self._hang_after_s = DEFAULT_HANG_AFTER_S
        self.connected = False
        self.ready: Ready | None = None
        self.progress: Progress | None = None
        self.stats: Stats | None = None
        self._gpus: tuple[float, tuple[GpuUse, ...]] = (0.0, ())  # when they were read, and what was
        self.hung = False
        self.was_ready = False  # since the server's start
        self.fault: str | None = None  # why a connected engine cannot be used

    @property
    def serving(self) -> bool:
        """Requests are taken now."""
        return self.ready is not None and not self.hung

    @property
    def open_requests(self) -> int:
        return len(self._inboxes)

    @property
    def gpus(self) -> tuple[GpuUse, ...]:
        """The machine's GPUs; empty where there are none, or when the last reading is old."""
        read_at, gpus = self._gpus
        return gpus if time.monotonic() - read_at < GPUS_FRESH_S else ()

    @property
    def silent_s(self) -> float:
        """Seconds since the engine's last frame."""
        return time.monotonic() - self._last_frame

    async def run(self) -> None:
        """Connects, watches, connects again; ends only by cancellation."""
        loop = asyncio.get_running_loop()
        watchdog = asyncio.create_task(self._watch())
        try:
            while True:
                closed: asyncio.Future[None] = loop.create_future()
                # The run folder may be a link that keeps the path inside the 107 bytes of a socket address.
                path = self._run_dir.resolve() / SOCKET_NAME
                with contextlib.suppress(OSError):
                    await loop.create_unix_connection(lambda: _Connection(self, closed), str(path))  # noqa: B023
                    await closed
                await asyncio.sleep(RECONNECT_S)
        finally:
            watchdog.cancel()
            if self._transport is not None:
                self._transport.close()

    def submit(self, submits: Sequence[Submit]) -> Inbox:
        """Sends requests to the engine; `close` the inbox in the end. Raises ApiError 429 or 503."""
        transport = self._transport
        if transport is None or not self.serving:
            raise engine_lost(_LOST)
        inbox = Inbox(submits)
        if len(self._inboxes) + len(submits) > self._max_open:
            raise overloaded(f"{len(self._inboxes)} requests are open, the limit is {self._max_open}")
        most = self._max_open_tokens
        if self._open_tokens and self._open_tokens + inbox.prompt_tokens > most:
            raise overloaded(f"the open requests hold {self._open_tokens} prompt tokens, the limit is {most}")
        self._open_tokens += inbox.prompt_tokens
        for submit in submits:
            self._inboxes[submit.id] = inbox
        transport.write(b"".join([pack(submit) for submit in submits]))
        return inbox

    def abort(self, inbox: Inbox, request_id: str) -> None:
        """One request needs no more tokens; its later outputs are dropped."""
        if request_id in inbox.open_ids:
            inbox.open_ids.discard(request_id)
            self._inboxes.pop(request_id, None)
            self._send(Abort(request_id))

    def close(self, inbox: Inbox) -> None:
        """The HTTP request is over: what still runs is aborted. Safe to call twice."""
        for request_id in list(inbox.open_ids):
            self.abort(inbox, request_id)
        self._open_tokens -= inbox.prompt_tokens
        inbox.prompt_tokens = 0

    def fail_all(self, error: ApiError) -> None:
        """Every open request ends with `error`; the engine is told to drop them."""
        for request_id, inbox in list(self._inboxes.items()):
            self.abort(inbox, request_id)
            inbox.fail(error)

    def connection_made(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self.connected = True
        self._last_frame = time.monotonic()

    def connection_lost(self) -> None:
        self._transport = None
        self.connected = False
        self.ready = self.progress = self.stats = self.fault = None
        self._gpus = (0.0, ())
        self.hung = False
        self._hang_after_s = DEFAULT_HANG_AFTER_S
        if self._inboxes:
            logger.error("the engine's connection is lost with %d requests open", len(self._inboxes))
        self.fail_all(engine_lost(_LOST))

    def receive(self, frame: Frame) -> None:
        """Takes one frame. Raises FrameError for an engine that speaks another protocol."""
        self._last_frame = time.monotonic()
        if self.hung:
            logger.warning("the engine moves again")
            self.hung = False
        match frame:
            case Outputs(outputs, stats):
                self.stats = stats
                for output in outputs:
                    self._deliver(output)
            case Heartbeat(stats, hang_after_s):
                self.stats = stats
                self._hang_after_s = hang_after_s
            case Gpus(gpus):
                self._gpus = (self._last_frame, gpus)
            case Progress():
                self.progress = frame
            case Ready():
                if self.fault is None:
                    self.ready = frame
                    self._max_open_tokens = limits.max_open_tokens(frame.max_model_len, frame.max_num_seqs)
                    self.was_ready = True
                    logger.info("the engine is ready: %s", frame)
            case Hello(protocol, _, release):
                if protocol != PROTOCOL:
                    raise FrameError(f"the engine speaks protocol {protocol}, this server {PROTOCOL}")
                if release != self._release:
                    self.fault = f"the engine still serves release {release}, this server {self._release}"

    def _deliver(self, output: Output) -> None:
        inbox = self._inboxes.get(output.id)
        if inbox is None:  # aborted while the engine worked on it
            return
        if output.finish is not None:
            del self._inboxes[output.id]
            inbox.open_ids.discard(output.id)
        inbox.push(output)

    def _send(self, frame: Frame) -> None:
        if self._transport is not None:
            self._transport.write(pack(frame))

    async def _watch(self) -> None:
        """Finds an engine that is alive but does not move.

        After Ready it sends a frame at least once a second while idle, else once a step.
        """
        while True:
            period = min(0.25, self._hang_after_s / 4)
            before = time.monotonic()
            await asyncio.sleep(period)
            # When this process itself was held up, frames may wait in the socket: look again later.
            late = time.monotonic() - before > 2 * period + 0.1
            if late or self.ready is None or self.hung or self.silent_s <= self._hang_after_s:
                continue
            logger.error("no frame from the engine for %.1f s: it hangs", self.silent_s)
            self.hung = True
            self.fail_all(engine_lost(_HUNG))


class _Connection(asyncio.Protocol):
    """Bytes from the socket, cut into frames for the client."""

    def __init__(self, client: EngineClient, closed: asyncio.Future[None]) -> None:
        self._client = client
        self._closed = closed
        self._buffer = FrameBuffer()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._client.connection_made(self._transport)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._buffer.feed(data):
                self._client.receive(decode_to_server(body))
        except FrameError as error:
            logger.error("the engine's frames are not understood: %s", error)
            assert self._transport is not None
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._client.connection_lost()
        if not self._closed.done():
            self._closed.set_result(None)
