"""provision.cli.chat: conversations against a real HTTP server whose answers the test chooses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest

from provision.cli import chat
from provision.cli.chat import Conversation
from provision.client import OpenAIClient
from provision.errors import EndpointError


class Echo(BaseHTTPRequestHandler):
    """Streams "<number of turns> turns" word by word, and remembers what it was asked."""

    asked: ClassVar[list[dict[str, Any]]]
    words: ClassVar[list[str]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        if body["messages"][-1]["content"] == "fail":
            self.send_error(500)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for word in self.words or [str(len(body["messages"])), " turns"]:
            self._event({"choices": [{"delta": {"content": word}, "finish_reason": None}]})
        self._event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture
def server() -> Iterator[type[Echo]]:
    """The handler's class: `asked` holds the requests, `words` what to answer."""

    class Handler(Echo):
        asked: ClassVar[list[dict[str, Any]]] = []
        words: ClassVar[list[str]] = []

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        Handler.server_port = http.server_port  # type: ignore[attr-defined]
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield Handler
        http.shutdown()
        thread.join()


@pytest.fixture
def client(server: type[Echo]) -> Iterator[OpenAIClient]:
    with OpenAIClient(f"http://127.0.0.1:{server.server_port}/v1", "sk-x") as client:  # type: ignore[attr-defined]
        yield client


def test_each_question_carries_the_conversation_so_far(client: OpenAIClient, server: type[Echo]) -> None:
    talk = Conversation(client, "demo")
    assert talk.ask("one") == "1 turns"
    assert talk.ask("two") == "3 turns"
    turns = [(turn["role"], turn["content"]) for turn in server.asked[1]["messages"]]
    assert turns == [("user", "one"), ("assistant", "1 turns"), ("user", "two")]


def test_reset_forgets_all_but_the_system_message(client: OpenAIClient, server: type[Echo]) -> None:
    talk = Conversation(client, "demo", system="Be brief.")
    talk.ask("one")
    talk.reset()
    talk.ask("two")
    assert [turn["content"] for turn in server.asked[1]["messages"]] == ["Be brief.", "two"]


def test_a_question_that_failed_is_forgotten(client: OpenAIClient) -> None:
    talk = Conversation(client, "demo")
    with pytest.raises(EndpointError):
        talk.ask("fail")
    assert talk.ask("again") == "1 turns"


def test_the_answer_streams_to_stdout(client: OpenAIClient, capsys: pytest.CaptureFixture[str]) -> None:
    Conversation(client, "demo").ask("one")
    assert capsys.readouterr().out == "1 turns\n"


def test_an_endless_answer_is_cut_unless_a_length_was_asked_for(
    client: OpenAIClient, server: type[Echo], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chat, "PIECES_LIMIT", 3)
    server.words = ["a", "b", "c", "d", "e"]
    assert Conversation(client, "demo").ask("one") == "abc"
    assert "--max-tokens" in capsys.readouterr().err
    assert Conversation(client, "demo", max_tokens=9).ask("one") == "abcde"
    assert server.asked[1]["max_tokens"] == 9


def test_a_conversation_ends_with_exit_and_knows_its_commands(
    client: OpenAIClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["one", "/reset", "/what", "", "two", "/exit", "never asked"])
    monkeypatch.setattr("builtins.input", lambda _prompt: next(lines))
    chat.hold_conversation(Conversation(client, "demo"))
    shown = capsys.readouterr()
    assert shown.out == "1 turns\n1 turns\n"
    assert "/what is not a command" in shown.err
    assert next(lines) == "never asked"
