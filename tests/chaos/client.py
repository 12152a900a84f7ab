"""Sends one request over a connection of its own and writes down all that comes back. Judges nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import h11

from tests.chaos.ask import Ask
from tests.chaos.machine import HOST

PATIENCE_S = 90.0  # without a byte: nothing may hang
_READ = 65536


@dataclass(slots=True)
class Seen:
    """`status` None: there was no answer. `broken`: how the connection failed, None where it did not.

    Times are seconds of `time.monotonic()`.
    """

    started: float
    ended: float = 0.0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    broken: str | None = None
    left: bool = False
    hung: bool = False

    @property
    def events(self) -> list[str]:
        """Data of the server-sent events that are complete."""
        blocks = bytes(self.body).decode("utf-8", "strict").split("\n\n")[:-1]
        return [block.removeprefix("data: ") for block in blocks]


class _Left(Exception):
    """The plan says that the client goes away now."""


async def send(ask: Ask, port: int) -> Seen:
    """Never raises: what goes wrong is part of what is seen."""
    seen = Seen(time.monotonic())
    leave = ask.leave
    limit = leave.seconds if leave is not None and leave.seconds is not None else None
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(limit):
            reader, writer = await asyncio.open_connection(HOST, port)
            await _write(ask, writer)
            async for _ in _answer(ask, reader, seen):
                _leave_inside(ask, seen)
    except TimeoutError:
        seen.left, seen.hung = limit is not None, limit is None
    except _Left:
        seen.left = True
    except (OSError, h11.RemoteProtocolError) as error:
        seen.broken = f"{type(error).__name__}: {error}"
    finally:
        seen.ended = time.monotonic()
        if writer is not None:
            writer.close() if seen.status and not seen.left else writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    return seen


async def send_together(ask: Ask, port: int) -> Sequence[Seen]:
    return await asyncio.gather(*(send(ask, port) for _ in range(ask.together)))


async def _write(ask: Ask, writer: asyncio.StreamWriter) -> None:
    data = ask.raw if ask.raw is not None else _request(ask)
    if ask.leave is not None and ask.leave.of_body is not None:
        head = data.index(b"\r\n\r\n") + 4
        writer.write(data[: head + int(ask.leave.of_body * (len(data) - head))])
        await writer.drain()
        raise _Left
    # A server that has refused already may close before it has read everything: its answer counts.
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        await writer.drain()


def _request(ask: Ask) -> bytes:
    length = "transfer-encoding: chunked" if ask.chunked else f"content-length: {len(ask.body)}"
    lines = [f"{ask.method} {ask.path} HTTP/1.1", "host: chaos", "connection: close", length]
    lines += [f"{name}: {value}" for name, value in ask.headers]
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    if not ask.chunked:
        return head + ask.body
    pieces = [ask.body[at : at + _READ] for at in range(0, len(ask.body), _READ)]
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


async def _answer(ask: Ask, reader: asyncio.StreamReader, seen: Seen) -> AsyncIterator[None]:
    """Yields after each piece of the body. Raises h11.RemoteProtocolError for an answer that is cut off."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(
        h11.Request(method=ask.method, target=ask.path, headers=[("host", "chaos"), ("connection", "close")])
    )
    connection.send(h11.EndOfMessage())
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            async with asyncio.timeout(PATIENCE_S):
                data = await reader.read(_READ)
            connection.receive_data(data)
            if not data and seen.status is None and connection.their_state is h11.SEND_RESPONSE:
                raise h11.RemoteProtocolError("the connection was closed without an answer")
        elif isinstance(event, h11.Response):
            seen.status = event.status_code
            seen.headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
        elif isinstance(event, h11.Data):
            seen.body += event.data
            yield
        elif isinstance(event, h11.EndOfMessage):
            return


def _leave_inside(ask: Ask, seen: Seen) -> None:
    wanted = ask.leave.events if ask.leave is not None else None
    if wanted is not None and seen.body.count(b"\n\n") >= wanted:
        raise _Left
