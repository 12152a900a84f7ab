"""The engine dies, hangs, comes back; the client goes away."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator

import httpx
import openai
import pytest
from engine_double import DEADLINE_S, poll
from server_process import MODEL, Server

STREAM = {"model": MODEL, "prompt": "the", "stream": True, "max_tokens": 50}
WHOLE = {"model": MODEL, "prompt": "the", "max_tokens": 50}


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """An engine that sends two tokens and then waits for ever; alive again after the test."""
    engine = shared_server.engine
    engine.reset()
    engine.reply, engine.pause_at = [10, 11, 12, 13], 2
    yield shared_server
    engine.kill()
    engine.hang_after_s = 30.0
    engine.start()
    shared_server.wait_healthy()


def events(lines: Iterator[str]) -> Iterator[str]:
    return (line.removeprefix("data: ") for line in lines if line)


def test_an_open_stream_ends_with_an_error_event_when_the_engine_dies(server: Server) -> None:
    with server.http() as client, client.stream("POST", "/v1/completions", json=STREAM) as stream:
        seen = events(stream.iter_lines())
        assert "choices" in json.loads(next(seen))
        server.engine.kill()
        rest = [json.loads(event) for event in seen]
    assert rest[-1]["error"]["code"] == "engine_lost"
    assert "the engine stopped" in rest[-1]["error"]["message"]  # its death was seen, and not its silence waited for


def test_the_openai_client_raises_from_a_stream_whose_engine_died(server: Server) -> None:
    stream = server.openai().completions.create(model=MODEL, prompt="the", max_tokens=50, stream=True)
    next(stream)
    server.engine.kill()
    with pytest.raises(openai.APIError, match="engine stopped"):
        list(stream)


def test_a_request_without_stream_gets_503_when_the_engine_dies(server: Server) -> None:
    answers: list[httpx.Response] = []

    def ask() -> None:
        with server.http() as client:
            answers.append(client.post("/v1/completions", json=WHOLE))

    asking = threading.Thread(target=ask)
    asking.start()
    server.engine.wait_for(lambda: len(server.engine.submits) == 1, "the request arrives")
    server.engine.kill()
    asking.join(DEADLINE_S)
    assert answers[0].status_code == 503
    assert answers[0].headers["retry-after"] == "2"
    assert answers[0].json()["error"]["code"] == "engine_lost"


def test_without_an_engine_requests_get_503_and_are_served_again_once_it_is_back(server: Server) -> None:
    with server.http() as client:
        server.engine.kill()
        poll(lambda: server.health().status_code == 503, "the loss is seen")
        refused = client.post("/v1/completions", json=WHOLE)
        assert (refused.status_code, refused.json()["phase"]) == (503, "load")
        server.engine.pause_at = None
        server.engine.start()
        server.wait_healthy()
        assert client.post("/v1/completions", json=WHOLE).status_code == 200


def test_a_silent_engine_is_a_hang_that_ends_streams_and_turns_health_to_503(server: Server) -> None:
    with server.http() as client, client.stream("POST", "/v1/completions", json=STREAM) as stream:
        seen = events(stream.iter_lines())
        next(seen)
        server.engine.hang_after_s = 0.3
        server.engine.heartbeat()
        last = list(seen)[-1]
    assert json.loads(last)["error"]["code"] == "engine_lost"
    body = server.health().json()
    assert (server.health().status_code, body["phase"]) == (503, "serve")
    assert "no step" in body["error"]


def test_a_hanging_engine_that_moves_again_is_used_again(server: Server) -> None:
    server.engine.hang_after_s = 0.2
    server.engine.heartbeat()
    poll(lambda: server.health().status_code == 503, "the hang is seen")
    server.engine.hang_after_s = 30.0
    server.engine.heartbeat()
    server.wait_healthy()


def test_a_client_that_leaves_its_stream_frees_the_request(server: Server) -> None:
    with server.http() as client, client.stream("POST", "/v1/completions", json=STREAM) as stream:
        next(stream.iter_lines())
    server.engine.wait_for(lambda: len(server.engine.aborted) == 1, "the request is aborted")
    assert server.engine.aborted == {server.engine.submits[0].id}


def test_a_client_that_leaves_without_stream_frees_the_request(server: Server) -> None:
    with server.http() as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json=WHOLE, timeout=httpx.Timeout(10, read=0.2))
    server.engine.wait_for(lambda: len(server.engine.aborted) == 1, "the request is aborted")


def test_a_client_that_leaves_frees_every_prompt_of_its_request(server: Server) -> None:
    body = {**STREAM, "prompt": ["the", "quick", "fox"]}
    with server.http() as client, client.stream("POST", "/v1/completions", json=body) as stream:
        next(stream.iter_lines())
    server.engine.wait_for(lambda: len(server.engine.aborted) == 3, "all three are aborted")


def test_more_open_requests_than_the_queue_holds_get_429(server: Server) -> None:
    server.engine.pause_at = 0
    body = {"model": MODEL, "prompt": [[10]] * 64, "max_tokens": 5}
    statuses: list[httpx.Response] = []
    done = threading.Event()

    def ask() -> None:
        with server.http() as client:
            try:
                answer = client.post("/v1/completions", json=body)
            except httpx.HTTPError:
                return
            statuses.append(answer)
            if answer.status_code == 429:
                done.set()

    askers = [threading.Thread(target=ask) for _ in range(17)]  # 17 · 64 > 4 running + 1024 queued
    for asker in askers:
        asker.start()
    assert done.wait(DEADLINE_S)
    server.engine.kill()
    for asker in askers:
        asker.join(DEADLINE_S)
    refused = [answer for answer in statuses if answer.status_code == 429]
    assert len(refused) == 1
    assert refused[0].headers["retry-after"] == "1"
    assert refused[0].json()["error"]["type"] == "rate_limit_error"


def test_an_engine_that_fails_one_request_is_a_500_with_its_reason(
    server: Server, reply: Callable[[str], list[int]]
) -> None:
    server.engine.error = "the logits are not finite"
    with server.http() as client:
        answer = client.post("/v1/completions", json=WHOLE)
    assert answer.status_code == 500
    assert "not finite" in answer.json()["error"]["message"]
