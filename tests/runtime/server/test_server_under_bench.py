"""`deployctl bench` against the real server process with a scripted engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from server_process import KEY, MODEL
from server_process import Server as ServerProcess

from provision.bench.answer import Server
from provision.bench.chart import draw
from provision.bench.load import Load
from provision.bench.result import Result
from provision.bench.session import Wanted, measure
from provision.errors import EndpointError

LENGTH = 8


def run(wanted: Wanted) -> list[Result]:
    results: list[Result] = []
    measure(wanted, progress=lambda *_: None, done=results.append)
    return results


@pytest.fixture
def wanted(server: ServerProcess, reply: Callable[[str], list[int]]) -> Wanted:
    reply("abcdefgh")
    endpoint = Server("own", f"{server.url}/v1", KEY, MODEL, None, 1.0)
    return Wanted((endpoint,), (Load("closed", 2, 1.0),), prompt_tokens=100, output_tokens=LENGTH)


def test_a_closed_load_is_answered_and_counted(wanted: Wanted) -> None:
    (result,) = run(wanted)
    assert result.errors == 0
    assert result.requests >= 2
    assert result.ttft_s is not None
    assert result.e2e_s is not None
    assert 0 < result.ttft_s.p50 <= result.e2e_s.p50
    assert result.usd_per_million_output_tokens is not None


def test_random_prompts_have_about_the_length_that_was_asked_for(wanted: Wanted) -> None:
    (result,) = run(wanted)
    assert result.prompt_tokens_mean == pytest.approx(wanted.prompt_tokens, rel=0.2)


def test_an_open_load_asks_at_its_rate_whatever_the_answers_do(wanted: Wanted, server: ServerProcess) -> None:
    (result,) = run(dataclasses.replace(wanted, loads=(Load("open", 20, 1.0),)))
    before = len(server.engine.submits)
    assert result.requests > 5
    assert before >= result.requests


def test_two_endpoints_are_asked_the_same_questions(wanted: Wanted, server: ServerProcess) -> None:
    second = dataclasses.replace(wanted.servers[0], name="other")
    results = run(dataclasses.replace(wanted, servers=(*wanted.servers, second), loads=(Load("open", 10, 0.8),)))
    assert {result.server for result in results} == {"own", "other"}
    assert len({result.requests for result in results}) == 1


def test_answers_that_do_not_come_are_errors_and_the_measurement_ends(wanted: Wanted, server: ServerProcess) -> None:
    asked_before = len(server.engine.submits)

    def stop_answering(*_: object) -> None:
        if len(server.engine.submits) > asked_before + 4:  # the probes have had their answers
            server.engine.pause_at = 1

    results: list[Result] = []
    measure(dataclasses.replace(wanted, loads=(Load("open", 10, 0.5),)), progress=stop_answering, done=results.append)
    assert results[0].errors > 0
    assert "not finished" in results[0].first_errors[0]


def test_a_refused_key_ends_it_before_any_load(wanted: Wanted) -> None:
    stranger = dataclasses.replace(wanted.servers[0], api_key="sk-nobody")
    with pytest.raises(EndpointError, match="HTTP 401"):
        run(dataclasses.replace(wanted, servers=(stranger,)))


@pytest.mark.slow
def test_a_chart_is_a_picture(wanted: Wanted, tmp_path: Path) -> None:
    draw(run(wanted), "own", tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
