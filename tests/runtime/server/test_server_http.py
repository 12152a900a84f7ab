"""What comes before a request is one: bytes that are no HTTP, and heads without an end."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from engine_double import DEADLINE_S, poll
from server_process import Server
from starlette.responses import PlainTextResponse

from runtime.server.http_protocol import BoundedProtocol


def answer_to(server: Server, data: bytes) -> tuple[int, dict[str, dict[str, object]]]:
    """Status and body of the answer to raw bytes, read until the server closes."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(data)
        with connection.makefile("rb") as stream:
            answer = stream.read()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    "data",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
    ],
)
def test_bytes_that_are_no_http_get_400_in_the_envelope(server: Server, data: bytes) -> None:
    status, body = answer_to(server, data)
    assert status == 400
    assert body["error"]["type"] == "invalid_request_error"


def test_a_head_without_an_end_gets_431_and_the_server_stays_well(server: Server) -> None:
    status, body = answer_to(server, b"GET /health HTTP/1.1\r\nX-More: " + b"y" * 200_000)
    assert status == 431
    assert "65536 bytes" in str(body["error"]["message"])
    assert server.health().status_code == 200


def test_a_body_that_breaks_off_gets_one_answer_and_leaves_no_traceback(server: Server) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    status, _ = answer_to(server, head + b"ZZ\r\n")
    assert status in (400, 401)  # no key and no HTTP: which is seen first is open
    assert server.health().status_code == 200
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("length", [b"Content-Length: 9999999", b"Transfer-Encoding: chunked"])
def test_a_client_that_sends_on_after_its_refusal_can_read_it(server: Server, length: bytes) -> None:
    """It asks for the connection to be closed; closed with bytes unread, the kernel would reset it."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + length + b"\r\n\r\n")
        for _ in range(10):
            time.sleep(0.03)
            connection.sendall(b"5\r\nabcde\r\n")
        with connection.makefile("rb") as stream:
            assert stream.read().startswith(b"HTTP/1.1 401 ")


class Impatient(BoundedProtocol):
    """Waits for a head as long as a test can."""

    head_s = 0.5


@pytest.fixture
def impatient() -> Iterator[int]:
    """The port of a server that speaks with the protocol alone."""
    app = PlainTextResponse("well")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, http=Impatient, lifespan="off", log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        poll(lambda: server.started, "the server starts")
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(DEADLINE_S)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost:"], ids=["nothing", "half a head"])
def test_a_connection_that_brings_no_whole_head_is_closed_after_a_while(impatient: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", impatient), timeout=DEADLINE_S) as connection:
        connection.sendall(sent)
        with connection.makefile("rb") as stream:
            assert stream.read().startswith(b"HTTP/1.1 408 ")


def test_so_is_one_whose_next_request_does_not_end_its_head(impatient: int) -> None:
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    address = ("127.0.0.1", impatient)
    with socket.create_connection(address, timeout=DEADLINE_S) as connection, connection.makefile("rb") as stream:
        connection.sendall(request)
        assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
        connection.sendall(request[:10])
        assert b"well" + b"HTTP/1.1 408 " in stream.read()
