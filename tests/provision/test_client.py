"""provision.client against a server that says exactly what a test wants, byte by byte."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from provision.client import Message, OpenAIClient
from provision.errors import EndpointError

HELLO = [Message("user", "Hello")]
Serve = Callable[[bytes], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(answer)` answers one request with these bytes, closes, and gives the base URL."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(answer: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def answer_once() -> None:
            connection, _ = listener.accept()
            with connection:
                received = b""
                while b"\r\n\r\n" not in received:
                    received += connection.recv(65536)
                head, _, body = received.partition(b"\r\n\r\n")
                fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
                while len(body) < int(fields.get(b"content-length", b"0")):
                    body += connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=answer_once, daemon=True)
        thread.start()
        threads.append(thread)
        return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"

    yield start
    for listener in listeners:
        listener.close()
    for thread in threads:
        thread.join(5)


def reply(status: str, body: str, kind: str = "application/json") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n{body}".encode()


def events(*data: str) -> bytes:
    return reply("200 OK", "".join(f"data: {item}\n\n" for item in data), "text/event-stream")


def delta(text: str, finish: str = "null") -> str:
    return f'{{"choices": [{{"delta": {{"content": "{text}"}}, "finish_reason": {finish}}}]}}'


def streamed(base_url: str) -> list[str]:
    with OpenAIClient(base_url, "sk-x") as client:
        return list(client.stream("demo", HELLO, temperature=0.0))


def test_a_completion_is_read(serve: Serve) -> None:
    body = '{"choices": [{"message": {"content": "Hi"}}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}'
    with OpenAIClient(serve(reply("200 OK", body)), "sk-x") as client:
        answer = client.complete("demo", HELLO, max_tokens=4)
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("Hi", 3, 1)


def test_a_stream_gives_its_pieces(serve: Serve) -> None:
    pieces = streamed(serve(events(delta("Hel"), delta("lo"), delta("", '"stop"'), "[DONE]")))
    assert pieces == ["Hel", "lo"]


def test_a_usage_event_without_choices_is_no_text(serve: Serve) -> None:
    assert streamed(serve(events(delta("Hi", '"stop"'), '{"choices": [], "usage": {}}', "[DONE]"))) == ["Hi"]


def test_a_stream_that_breaks_off_is_an_error(serve: Serve) -> None:
    with pytest.raises(EndpointError, match="broke off"):
        streamed(serve(events(delta("Hel"))))


def test_an_error_inside_a_stream_is_an_error_with_its_reason(serve: Serve) -> None:
    with pytest.raises(EndpointError, match="the engine died"):
        streamed(serve(events(delta("Hel"), '{"error": {"message": "the engine died"}}')))


@pytest.mark.parametrize(
    ("status", "what"),
    [("401 Unauthorized", "API key"), ("503 Service Unavailable", "not ready"), ("400 Bad Request", "status 400")],
)
def test_refusals_say_why(serve: Serve, status: str, what: str) -> None:
    base_url = serve(reply(status, '{"error": {"message": "because"}}'))
    with OpenAIClient(base_url, "sk-x") as client, pytest.raises(EndpointError, match="because") as caught:
        client.complete("demo", HELLO, max_tokens=4)
    assert what in caught.value.what


@pytest.mark.parametrize("body", ["", "<html>", "[]", '{"choices": []}'])
def test_an_answer_that_is_no_completion_is_refused(serve: Serve, body: str) -> None:
    with OpenAIClient(serve(reply("200 OK", body)), "sk-x") as client, pytest.raises(EndpointError):
        client.complete("demo", HELLO, max_tokens=4)


def test_nobody_there_names_the_endpoint_and_the_next_command() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    with OpenAIClient(base_url, "sk-x") as client, pytest.raises(EndpointError, match=base_url) as caught:
        client.complete("demo", HELLO, max_tokens=4)
    assert caught.value.next_command == "deployctl status"
