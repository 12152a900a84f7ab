"""Loads, prompts and what is concluded from answers: pure parts of `deployctl bench`."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path

import pytest

from provision.bench import report
from provision.bench.answer import Answer, Server
from provision.bench.load import Load, arrivals
from provision.bench.prompts import FileQuestions, Question, RandomQuestions, read_sharegpt
from provision.bench.result import Objective, spread, summarize, usd_per_million
from provision.bench.run import Asked
from provision.cli.bench import read_loads
from provision.errors import SpecError, UsageError

SERVER = Server("demo", "http://127.0.0.1:1/v1", "key", "model", None, 3.6)


def answer(*, ttft: float = 0.1, e2e: float = 1.1, output: int = 11, error: str | None = None) -> Answer:
    return Answer(0.0, e2e, None if error else ttft, (0.1, 0.1), 100, 0 if error else output, error)


def test_an_open_loads_requests_come_as_often_as_asked_and_as_irregularly_as_a_poisson_process() -> None:
    moments = list(arrivals(Load("open", 50, 200), seed=1))
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert len(moments) == pytest.approx(10_000, rel=0.04)  # four standard deviations
    assert statistics.stdev(gaps) == pytest.approx(statistics.fmean(gaps), rel=0.05)  # true of an exponential


def test_a_seed_fixes_moments_and_prompts() -> None:
    load = Load("open", 10, 5)
    assert list(arrivals(load, 7)) == list(arrivals(load, 7)) != list(arrivals(load, 8))
    assert RandomQuestions(20, 8, seed=7).question(3) == RandomQuestions(20, 8, seed=7).question(3)


def test_no_two_random_prompts_begin_alike() -> None:
    texts = {tuple(RandomQuestions(64, 8).question(number).text.split()[:8]) for number in range(500)}
    assert len(texts) == 500


def test_every_question_of_a_file_is_asked_before_one_is_asked_again() -> None:
    asked = FileQuestions(tuple(Question(str(number), 1) for number in range(5)))
    assert {asked.question(number).text for number in range(5)} == {"0", "1", "2", "3", "4"}
    assert {asked.question(number).text for number in range(5, 10)} == {"0", "1", "2", "3", "4"}


def test_a_file_gives_first_questions_and_the_length_of_their_answers(tmp_path: Path) -> None:
    file = tmp_path / "talks.json"
    talks = [
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "x" * 400}]},
        {"conversations": [{"from": "gpt", "value": "It began with me."}]},
        {"conversations": [{"from": "user", "value": "And?"}]},
    ]
    file.write_text(json.dumps(talks))
    assert read_sharegpt(file, None) == (Question("Why?", 100), Question("And?", 64))
    assert read_sharegpt(file, 7) == (Question("Why?", 7), Question("And?", 7))


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("{}", "the top"),
        ('[{"messages": []}]', "[0]"),
        ('[{"conversations": [{"from": "human", "value": 3}]}]', "[0].conversations[0]"),
        ("[", "not JSON"),
        ('[{"conversations": [{"from": "gpt", "value": "x"}]}]', "no conversation"),
    ],
)
def test_a_file_of_another_form_is_refused_with_the_place(tmp_path: Path, content: str, place: str) -> None:
    file = tmp_path / "talks.json"
    file.write_text(content)
    with pytest.raises(SpecError) as refused:
        read_sharegpt(file, None)
    assert place in str(refused.value)


def test_rates_count_what_was_answered_and_errors_are_named() -> None:
    answers = (answer(), answer(), answer(error="HTTP 429: full"), answer(error="HTTP 429: full"))
    result = summarize(Asked(SERVER, Load("closed", 2, 2.0), answers, wall_s=2.0, lag_s=0.0), None)
    assert (result.requests, result.errors, result.requests_per_s, result.output_tokens_per_s) == (4, 2, 1.0, 11.0)
    assert result.first_errors == ("2× HTTP 429: full",)


def test_time_per_output_token_leaves_the_first_one_out() -> None:
    assert answer(ttft=0.1, e2e=1.1, output=11).tpot_s == pytest.approx(0.1)
    assert answer(output=1).tpot_s is None


def test_goodput_counts_answers_that_met_every_objective() -> None:
    answers = (answer(ttft=0.1, e2e=1.1), answer(ttft=0.9, e2e=1.9), answer(ttft=0.1, e2e=9.0), answer(error="gone"))
    asked = Asked(SERVER, Load("open", 2, 2.0), answers, wall_s=2.0, lag_s=0.0)
    assert summarize(asked, Objective(ttft_s=0.5, tpot_s=0.5)).goodput_rps == 0.5
    assert summarize(asked, Objective(ttft_s=0.5)).goodput_rps == 1.0
    assert summarize(asked, None).goodput_rps is None


def test_a_million_tokens_cost_the_hours_that_they_take() -> None:
    assert usd_per_million(3.6, 1000.0) == pytest.approx(1.0)  # a million tokens in 1,000 s at $0.001 a second
    assert usd_per_million(None, 1000.0) is None
    assert usd_per_million(3.6, 0.0) is None


def test_percentiles_lie_between_the_measured_times() -> None:
    found = spread([3.0, 1.0, 2.0, 4.0, 5.0])
    assert found is not None
    assert (found.p50, found.p95) == (3.0, pytest.approx(4.8))
    assert spread([]) is None


def test_the_table_has_a_row_per_measurement_and_the_notes_its_errors() -> None:
    asked = Asked(SERVER, Load("closed", 10, 2.0), (answer(), answer(error="HTTP 500: no")), wall_s=2.0, lag_s=0.3)
    result = summarize(asked, Objective(ttft_s=1.0))
    lines = report.table([result], Objective(ttft_s=1.0)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split("|")[1:6] == [" demo     ", " c=10 ", " 1  ", " 1      ", " 5.5   "]
    notes = "\n".join(report.notes([result], Objective(ttft_s=1.0)))
    assert "1× HTTP 500: no" in notes
    assert "TTFT ≤ 1 s" in notes
    assert "300 ms late itself" in notes


def test_two_endpoints_are_compared_load_by_load() -> None:
    other = Server("vllm", "http://127.0.0.1:2/v1", "key", "model")
    fast = summarize(Asked(SERVER, Load("closed", 1, 1.0), (answer(ttft=0.1),), 1.0, 0.0), None)
    slow = summarize(Asked(other, Load("closed", 1, 1.0), (answer(ttft=0.2),), 2.0, 0.0), None)
    assert report.ratios([fast, slow]) == ["c=1: demo has 2.00× the tokens/s and 0.50× the TTFT of vllm."]
    assert report.ratios([fast]) == []


def test_loads_are_read_from_lists_of_numbers() -> None:
    assert [load.label for load in read_loads("1,10", "0.5", 20)] == ["c=1", "c=10", "0.5/s"]
    for clients, qps in (("x", ""), ("0", ""), ("1.5", ""), ("", ""), ("", "-1"), ("nan", "")):
        with pytest.raises(UsageError):
            read_loads(clients, qps, 20)
