"""The request log: what each mode writes about a request, and what no mode ever does."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from engine_double import poll
from server_process import KEY, MODEL, Server

from runtime.deployment import RequestLogMode
from runtime.server.request_log import FULL_BYTES

SECRET = "my-grandmothers-pie"
PATH = "/v1/chat/completions"
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": SECRET}]}

Start = Callable[[RequestLogMode], Server]


@pytest.fixture(scope="module")
def start(make_server: Callable[..., Server]) -> Start:
    """A ready server for each mode."""
    started: dict[str, Server] = {}

    def one(mode: RequestLogMode) -> Server:
        if mode not in started:
            server = started[mode] = make_server()
            server.request_log = mode
            server.engine.start()
            server.launch()
            server.wait_healthy()
        started[mode].engine.reset()
        return started[mode]

    return one


def lines(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]


def line_of(server: Server, answer: httpx.Response) -> dict[str, Any]:
    """The line of the request with this answer, which is written soon after it."""
    request_id = answer.headers["x-request-id"]
    found: list[dict[str, Any]] = []

    def there() -> bool:
        found[:] = [line for line in lines(server) if line["request_id"] == request_id]
        return bool(found)

    poll(there, "the line is written")
    assert len(found) == 1
    return found[0]


def test_without_asking_nothing_is_logged(start: Start) -> None:
    server = start("off")
    with server.http() as client:
        assert client.post(PATH, json=CHAT).status_code == 200
    assert lines(server) == []


def test_redacted_tells_who_how_much_and_how_long(start: Start) -> None:
    server = start("redacted")
    server.engine.reply, server.engine.cached_tokens = [10, 11], 5
    with server.http() as client:
        answer = client.post(PATH, json={**CHAT, "n": 2}, headers={"X-Request-Id": "mine-1"})
    line = line_of(server, answer)
    usage = answer.json()["usage"]
    assert 0 <= line.pop("first_token_s") <= line.pop("total_s")
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "request_id": "mine-1",
        "key": "k0",
        "method": "POST",
        "route": PATH,
        "status": 200,
        "model": MODEL,
        "stream": False,
        "prompt_tokens": usage["prompt_tokens"],
        "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "finish_reasons": ["stop", "stop"],
    }


@pytest.mark.parametrize("stream", [False, True])
def test_redacted_has_nothing_of_what_was_said(start: Start, reply_tokens: list[int], stream: bool) -> None:
    server = start("redacted")
    server.engine.reply = reply_tokens
    body = {**CHAT, "stream": stream, "user": SECRET, "stop": [SECRET]}
    with server.http() as client:
        answer = client.post(PATH, json=body)
        wrong = client.post(PATH, json={**body, SECRET: 1})
    assert line_of(server, answer)["completion_tokens"] > 0
    assert line_of(server, wrong)["status"] == 400
    assert SECRET not in server.log.read_text()


def test_full_has_the_request_and_the_outputs(start: Start, reply_tokens: list[int]) -> None:
    server = start("full")
    server.engine.reply = reply_tokens
    with server.http() as client:
        line = line_of(server, client.post(PATH, json={**CHAT, "n": 2, "temperature": 0.5, "stream": True}))
    request = json.loads(line["request"])
    assert request["messages"][0]["content"] == [{"type": "text", "text": SECRET}]
    assert (request["temperature"], request["n"]) == (0.5, 2)
    assert line["outputs"] == ["the pie", "the pie"]


def test_long_texts_are_cut_so_that_a_line_stays_one(start: Start) -> None:
    server = start("full")
    body = {**CHAT, "user": '"é' * 40_000}
    with server.http() as client:
        answer = client.post(PATH, json=body)
    line = line_of(server, answer)
    assert line["request"].endswith("…")
    assert len(line["request"].encode()) < FULL_BYTES + 4


@pytest.mark.parametrize("mode", ["redacted", "full"])
def test_no_key_is_ever_logged_and_a_request_without_one_is_not(start: Start, mode: RequestLogMode) -> None:
    server = start(mode)
    with server.http("sk-somebody-elses-key") as stranger:
        refused = stranger.post(PATH, json=CHAT)
    with server.http() as client:
        line_of(server, client.post(PATH, json=CHAT))
    log = server.log.read_text()
    assert refused.status_code == 401
    assert refused.headers["x-request-id"] not in log
    assert KEY not in log
    assert "sk-somebody" not in log


def test_a_refusal_and_a_request_without_a_body_have_a_line_too(start: Start) -> None:
    server = start("redacted")
    with server.http() as client:
        lost = line_of(server, client.get(f"/v1/nothing/{'x' * 3000}"))
        card = line_of(server, client.get(f"/v1/models/{MODEL}"))
    assert lost["status"] == 404
    assert len(lost["route"]) <= 200
    assert (card["status"], card["route"]) == (200, "/v1/models/{name:path}")
    assert "prompt_tokens" not in card


def test_a_client_that_leaves_has_a_line_without_status_and_reason(start: Start) -> None:
    server = start("redacted")
    server.engine.reply, server.engine.pause_at = [10, 11], 0
    headers = {"X-Request-Id": "gone-1"}
    with server.http() as client, pytest.raises(httpx.ReadTimeout):
        client.post(PATH, json=CHAT, headers=headers, timeout=httpx.Timeout(10, read=0.2))
    poll(lambda: any(line["request_id"] == "gone-1" for line in lines(server)), "the line is written")
    line = next(line for line in lines(server) if line["request_id"] == "gone-1")
    assert (line["status"], line["finish_reasons"], line["completion_tokens"]) == (None, [None], 0)


def test_questions_of_machines_are_not_logged(start: Start) -> None:
    server = start("redacted")
    with server.http() as client:
        ids = [client.get(path).headers.get("x-request-id", "none") for path in ("/metrics", "/health", "/")]
        line_of(server, client.get("/v1/models"))
    assert not [line for line in lines(server) if line["request_id"] in ids]


@pytest.fixture(scope="module")
def reply_tokens(tokenizer: Any) -> list[int]:
    ids: list[int] = tokenizer.encode("the pie").ids
    return ids
