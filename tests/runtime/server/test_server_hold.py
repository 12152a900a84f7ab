"""Requests that come while a release takes over: they wait, and only then; and how one server follows another."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest
from engine_double import DEADLINE_S, poll
from server_process import MODEL, RELEASE, Server

from runtime.deployment import encode
from runtime.handover import HAND_OVER, HANDOVER, PROBED, Handover, read_probed
from runtime.mailbox import write_atomic
from runtime.server.drain import GRACE_S

BODY = {"model": MODEL, "prompt": "the", "max_tokens": 4}


def tell(server: Server, *, release: str = RELEASE, held: bool = True, probe: str | None = None) -> None:
    """The agent's word."""
    word = Handover(release=release, began_at=time.time(), held=held, probe=probe)
    write_atomic(server.run_dir / HANDOVER, encode(word))


def ask(server: Server) -> httpx.Response:
    with server.http() as client:
        return client.post("/v1/completions", json=BODY)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture(scope="module")
def one_server(make_server: Callable[..., Server]) -> Server:
    server = make_server()
    server.launch()
    server.wait_answering()
    return server


@pytest.fixture
def holding(one_server: Server) -> Server:
    """A server whose release takes over; its engine is not there yet."""
    one_server.engine.kill()
    one_server.engine.reset()
    (one_server.run_dir / PROBED).unlink(missing_ok=True)
    tell(one_server)

    def holds() -> bool:
        health = one_server.health().json()
        return health["phase"] == "load" and "new requests wait" in (health["hint"] or "")

    poll(holds, "the server has heard of it")
    return one_server


def held(server: Server, pool: ThreadPoolExecutor, count: int) -> list[Future[httpx.Response]]:
    """Requests that have arrived and wait."""
    asked = [pool.submit(ask, server) for _ in range(count)]
    poll(lambda: connections(server) >= count, "the requests arrive")
    assert not any(item.done() for item in asked)
    return asked


def connections(server: Server) -> int:
    """Open connections of the server's port, by the kernel's table."""
    port = f":{int(server.url.rpartition(':')[2]):04X}"
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table]
    return sum(row[1].endswith(port) and row[3] == "01" for row in rows[1:])


def test_a_request_waits_until_the_release_has_proved_itself_and_is_answered(
    holding: Server, pool: ThreadPoolExecutor
) -> None:
    asked = held(holding, pool, 4)
    holding.engine.reply = [10, 11]
    holding.engine.start()
    poll(lambda: holding.health().json()["phase"] == "serve", "the engine is loaded")
    assert holding.health().status_code == 503
    assert holding.engine.submits == []
    (holding.run_dir / HANDOVER).unlink()
    assert [item.result(DEADLINE_S).status_code for item in asked] == [200] * 4
    assert holding.health().status_code == 200


def test_a_request_goes_on_waiting_while_the_engine_dies_in_its_load_and_is_started_again(
    holding: Server, pool: ThreadPoolExecutor
) -> None:
    asked = held(holding, pool, 2)
    holding.engine.start(ready=False)
    holding.engine.wait_connected()
    holding.engine.kill()
    assert "new requests wait" in holding.health().json()["hint"]
    assert not any(item.done() for item in asked)
    holding.engine.reply = [10, 11]
    holding.engine.start()
    poll(lambda: holding.health().json()["phase"] == "serve", "the engine is loaded")
    (holding.run_dir / HANDOVER).unlink()
    assert [item.result(DEADLINE_S).status_code for item in asked] == [200] * 2


def test_when_the_release_fails_those_who_wait_are_told_to_come_again(
    holding: Server, pool: ThreadPoolExecutor
) -> None:
    (asked,) = held(holding, pool, 1)
    tell(holding, release="r0")
    answer = asked.result(DEADLINE_S)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0


def test_a_request_waits_for_hold_max_s_at_most(make_server: Callable[..., Server]) -> None:
    server = make_server()
    server.hold_max_s = 0.3
    tell(server)
    server.launch()
    server.wait_answering()
    began = time.monotonic()
    answer = ask(server)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert time.monotonic() - began >= 0.3


def test_a_wrong_key_does_not_wait(holding: Server) -> None:
    with holding.http("sk-wrong") as client:
        assert client.post("/v1/completions", json=BODY).status_code == 401


@pytest.mark.slow
def test_an_engine_that_died_unasked_is_a_503_at_once(make_server: Callable[..., Server]) -> None:
    server = make_server()
    server.engine.start()
    server.launch()
    server.wait_healthy()
    server.engine.kill()
    poll(lambda: server.health().status_code == 503, "the death is noticed")
    answer = ask(server)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0


def test_one_who_leaves_while_waiting_frees_the_place(holding: Server, pool: ThreadPoolExecutor) -> None:
    address = ("127.0.0.1", int(holding.url.rpartition(":")[2]))
    head = (
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-test-0123456789\r\n"
        b"content-type: application/json\r\ncontent-length: 40000000\r\n\r\n"
    )
    # What waits may hold 64 MiB together: two such bodies only when the first has gone.
    for _ in range(3):
        with socket.create_connection(address, DEADLINE_S) as client:
            client.sendall(head.replace(b"40000000", b"1000000") + b"[" * 1_000_000)
            poll(lambda: connections(holding) >= 1, "it has arrived")
        poll(lambda: connections(holding) == 0, "it has left")
    (asked,) = held(holding, pool, 1)
    tell(holding, release="r0")
    assert asked.result(DEADLINE_S).status_code == 503


def test_the_agents_question_is_answered_with_greedy_tokens(holding: Server) -> None:
    holding.engine.reply = [10, 11, 12]
    holding.engine.start()
    tell(holding, probe="q1")
    poll(lambda: read_probed(holding.run_dir) is not None, "an answer")
    answer = read_probed(holding.run_dir)
    assert answer is not None
    assert (answer.probe, answer.error) == ("q1", None)
    assert answer.tokens[:3] == (10, 11, 12)
    (submit,) = holding.engine.submits
    assert (submit.sampling.temperature, submit.sampling.max_tokens, submit.sampling.ignore_eos) == (0.0, 32, True)


def test_an_engine_that_fails_the_question_is_told_to_the_agent(holding: Server) -> None:
    holding.engine.error = "the logits are not finite"
    holding.engine.start()
    tell(holding, probe="q2")
    poll(lambda: read_probed(holding.run_dir) is not None, "an answer")
    answer = read_probed(holding.run_dir)
    assert answer is not None
    assert (answer.tokens, answer.error) == ((), "the logits are not finite")


def test_the_next_server_on_the_socket_has_the_old_one_end_its_streams_and_go(
    make_server: Callable[..., Server],
) -> None:
    server = make_server()
    engine = server.engine
    engine.start()
    with server.launched() as listener:
        server.wait_healthy()
        engine.reply, engine.pause_at = [10, 11, 12, 13], 2
        texts, reader = begin_stream(server)
        old = server.process
        tell(server)
        server.launch_next(listener)
        poll(lambda: "Shutting down" in server.log.read_text(), "the old server accepts no more")
        assert server.health().status_code == 503
        assert old.poll() is None
        engine.finish(engine.submits[0].id, [12, 13])
        reader.join(DEADLINE_S)
        assert "".join(texts).endswith("data: [DONE]\n\n")
        assert old.wait(DEADLINE_S) == 0
        (server.run_dir / HANDOVER).unlink()
        server.wait_healthy()


def begin_stream(server: Server) -> tuple[list[str], threading.Thread]:
    """A stream that has begun: what has come of it, and who reads it."""
    texts: list[str] = []

    def consume() -> None:
        with server.http() as client, client.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as stream:
            texts.extend(stream.iter_text())

    reader = threading.Thread(target=consume)
    reader.start()
    poll(lambda: len(texts) > 0, "the stream has begun")
    return texts, reader


@pytest.mark.slow
def test_a_connection_that_was_idle_is_answered_once_more_and_then_closed(make_server: Callable[..., Server]) -> None:
    server = make_server()
    engine = server.engine
    engine.reply = [10, 11]
    engine.start()
    server.launch()
    server.wait_healthy()
    with server.http() as client:
        assert client.post("/v1/completions", json=BODY).headers.get("connection") != "close"
        engine.pause_at = 1
        texts, reader = begin_stream(server)  # so that the server has something to wait for
        engine.pause_at = None
        server.process.send_signal(HAND_OVER)
        poll(lambda: "Shutting down" in server.log.read_text(), "the signal is seen")
        answer = client.post("/v1/completions", json=BODY)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    engine.finish(engine.submits[1].id, [11])
    reader.join(DEADLINE_S)
    assert "".join(texts).endswith("data: [DONE]\n\n")
    assert server.process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_second_signal_ends_the_server_at_once(make_server: Callable[..., Server], second: signal.Signals) -> None:
    server = make_server()
    engine = server.engine
    engine.start()
    server.launch()
    server.wait_healthy()
    engine.reply, engine.pause_at = [10, 11], 1
    ended = threading.Event()

    def consume() -> None:
        try:
            with server.http() as client:
                client.post("/v1/completions", json=BODY)
        except httpx.HTTPError:
            ended.set()

    reader = threading.Thread(target=consume)
    reader.start()
    engine.wait_for(lambda: len(engine.submits) == 1, "the request arrives")
    server.process.send_signal(signal.SIGTERM)
    poll(lambda: "Shutting down" in server.log.read_text(), "the first signal is seen")
    began = time.monotonic()
    os.kill(server.process.pid, second)
    assert server.process.wait(DEADLINE_S) == 0
    assert time.monotonic() - began < GRACE_S / 2
    reader.join(DEADLINE_S)
