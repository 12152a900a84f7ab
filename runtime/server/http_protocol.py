"""HTTP parsing with bounds on the size and the time of a request's head, which httptools itself does not have, and
refusals in the envelope.

What is no HTTP, or does not end its head, is answered and the connection closed: nobody has shown a key at that point.
A connection that closes while its client still sends lingers for LINGER_S: closed at once with bytes unread, the kernel
would reset it and the answer be lost.
"""

from __future__ import annotations

from asyncio import BaseTransport, TimerHandle

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from runtime.server.errors import ApiError

MAX_HEAD = 64 * 2**10  # bytes of request line and headers
LINGER_S = 1.0


class BoundedProtocol(HttpToolsProtocol):
    """A connection is refused once; what still arrives on it is dropped."""

    head_s = 30.0  # from the connection, or from a later request's first byte, to the end of the head
    _head_timer: TimerHandle | None = None
    _in_head = False
    _head_bytes = 0
    _refused = False

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if self._in_head else 0
        if self._head_bytes > MAX_HEAD:
            self._refuse(ApiError(431, f"the request's head is over the limit of {MAX_HEAD} bytes"), b"too large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()
        self.cycle.transport = _Lingering(self, self.cycle)  # type: ignore[assignment]

    def linger(self) -> None:
        """Says that nothing more comes, and closes a little later; what still arrives is dropped."""
        self._refused = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, "this is not an HTTP request that can be read"), b"bad request")

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_s, self._late)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        self._head_timer = None
        self._refuse(ApiError(408, f"the request's head was not there after {self.head_s:.0f} s"), b"timeout")

    def _refuse(self, error: ApiError, reason: bytes) -> None:
        self._refused = True
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:  # its body broke off while the request was worked on
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
        if self.transport.is_closing():
            return
        body = error.body()
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (error.status_code, reason, len(body), body)
        )
        self.linger()


class _Lingering:
    """The transport as one request's cycle sees it: a close before the whole body is there lingers."""

    def __init__(self, protocol: BoundedProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing

    def close(self) -> None:
        self._protocol.linger() if self._cycle.more_body else self._protocol.transport.close()
