"""From the first moment of the process to the first answer, and to its end."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from engine_double import DEADLINE_S, poll
from server_process import KEY, MODEL, RELEASE, Server

from runtime.mailbox import Phase, Status, encode_status, write_atomic
from runtime.server.drain import GRACE_S

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
FIELDS = {"phase", "percent", "eta_s", "error", "hint"}


def write_status(server: Server, phase: Phase, error: str | None = None, hint: str | None = None) -> None:
    status = Status(
        instance_id="i",
        release=RELEASE,
        phase=phase,
        updated_at=time.time(),
        percent=40.0,
        eta_s=12.0,
        error=error,
        hint=hint,
    )
    write_atomic(server.status, encode_status(status))


@pytest.fixture
def booting(make_server: Callable[..., Server]) -> Server:
    """A server whose weights and engine are not there yet."""
    server = make_server(weights=False)
    server.launch()
    return server


def test_the_port_answers_after_less_than_two_seconds_of_work(make_server: Callable[..., Server]) -> None:
    server = make_server(weights=False)
    server.launch()
    assert server.health().status_code == 503
    # Processor time: what a wall clock shows too, except on a machine that others keep busy.
    spent = psutil.Process(server.process.pid).cpu_times()
    assert spent.user + spent.system < 2.0


def test_a_server_without_a_passed_socket_binds_the_deployments_port(
    make_server: Callable[..., Server],
) -> None:
    server = make_server()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server.launch_on(port)

    def accepts() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    poll(accepts, "the port is open")
    assert server.health().status_code == 503


def test_a_taken_port_ends_the_process_with_a_message(make_server: Callable[..., Server]) -> None:
    server = make_server()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server.launch_on(taken.getsockname()[1])
        assert server.process.wait(DEADLINE_S) == 3
    assert "hint:" in server.log.read_text().splitlines()[-1]


def test_before_load_the_503_tells_the_agents_phase(booting: Server) -> None:
    write_status(booting, "weights")
    answer = booting.health()
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "12"
    assert answer.json() == {"phase": "weights", "percent": 40.0, "eta_s": 12.0, "error": None, "hint": None}


def test_a_failed_phase_shows_its_error_and_hint(booting: Server) -> None:
    write_status(booting, "load", "the model is not supported", "choose another model")
    body = booting.health().json()
    assert (body["phase"], body["error"]) == ("load", "the model is not supported")
    assert body["hint"] == "choose another model"


def test_while_loading_the_503_tells_the_engines_progress(booting: Server, model_folder: Path) -> None:
    write_status(booting, "load")
    booting.write_weights(model_folder)
    booting.engine.start(ready=False)
    booting.engine.wait_connected()
    booting.engine.progress(62.5, 3.0)
    poll(lambda: booting.health().json()["percent"] == 62.5, "the engine's percent is shown")
    body = booting.health().json()
    assert set(body) == FIELDS
    assert (body["phase"], body["eta_s"]) == ("load", 3.0)


def test_before_ready_the_api_answers_503_in_the_envelope_with_the_phase(booting: Server) -> None:
    write_status(booting, "weights")
    with booting.http() as client:
        answer = client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "12"
    body = answer.json()
    assert body["error"]["code"] == "not_ready"
    assert (body["phase"], body["percent"], body["eta_s"]) == ("weights", 40.0, 12.0)


def test_before_ready_a_wrong_key_is_told_nothing_else(booting: Server) -> None:
    with booting.http("wrong") as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 401


def test_weights_that_come_after_the_start_are_picked_up(booting: Server, model_folder: Path) -> None:
    booting.engine.start()
    booting.engine.wait_connected()
    assert booting.health().status_code == 503
    booting.write_weights(model_folder)
    booting.wait_healthy()
    with booting.http() as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_a_model_without_tokenizer_is_named_in_the_503(booting: Server, tmp_path: Path) -> None:
    booting.engine.start()
    booting.write_weights(tmp_path)
    poll(lambda: "tokenizer.json" in (booting.health().json()["error"] or ""), "the missing file is named")
    assert booting.health().json()["hint"]


def test_an_engine_of_another_release_is_not_used(booting: Server, model_folder: Path) -> None:
    booting.write_weights(model_folder)
    booting.engine.release = "r0"
    booting.engine.start()
    poll(lambda: "r0" in (booting.health().json()["error"] or ""), "the other release is named")


def test_sigterm_lets_a_running_stream_finish_and_exits_with_0(
    make_server: Callable[..., Server], tokenizer: object
) -> None:
    server = make_server()
    engine = server.engine
    engine.start()
    server.launch()
    server.wait_healthy()
    engine.reply, engine.pause_at = [10, 11, 12, 13], 2
    texts: list[str] = []

    def consume() -> None:
        with server.http() as client, client.stream("POST", "/v1/completions", json=body) as stream:
            texts.extend(stream.iter_text())

    body = {"model": MODEL, "prompt": "the", "stream": True}
    reader = threading.Thread(target=consume)
    reader.start()
    engine.wait_for(lambda: len(engine.submits) == 1, "the request arrives")
    poll(lambda: len(texts) > 0, "the stream has begun")
    server.process.send_signal(signal.SIGTERM)
    poll(lambda: "Shutting down" in server.log.read_text(), "the signal is seen")
    engine.finish(engine.submits[0].id, [12, 13])
    reader.join(DEADLINE_S)
    assert "".join(texts).endswith("data: [DONE]\n\n")
    assert server.process.wait(DEADLINE_S) == 0


def test_sigterm_on_an_idle_server_does_not_wait_for_the_grace_period(
    make_server: Callable[..., Server],
) -> None:
    server = make_server()
    server.launch()
    server.wait_answering()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(GRACE_S / 2) == 0


def test_keys_are_reloaded_when_their_file_changes(make_server: Callable[..., Server]) -> None:
    server = make_server(weights=False)
    server.launch()
    with server.http(KEY) as old, server.http("sk-new") as new:
        assert (old.get("/metrics").status_code, new.get("/metrics").status_code) == (200, 401)
        server.write_keys("sk-new")
        assert (old.get("/metrics").status_code, new.get("/metrics").status_code) == (401, 200)


def test_a_broken_key_file_keeps_the_keys_that_were_valid(make_server: Callable[..., Server]) -> None:
    server = make_server(weights=False)
    server.launch()
    with server.http(KEY) as client:
        assert client.get("/metrics").status_code == 200
        server.keys.write_text("{")
        assert client.get("/metrics").status_code == 200


def test_without_a_key_file_nobody_is_let_in(make_server: Callable[..., Server]) -> None:
    server = make_server(weights=False)
    server.keys.unlink()
    server.launch()
    with server.http(KEY) as client:
        assert client.get("/metrics").status_code == 401
