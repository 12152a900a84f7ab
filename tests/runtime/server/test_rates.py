"""Requests and tokens per minute of one key: what is admitted, what is refused, and what the headers say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from server_process import KEY, MODEL, Server, key_digest

from runtime.deployment import ApiKey, encode
from runtime.mailbox import write_atomic
from runtime.server.errors import ApiError
from runtime.server.rates import Rates

DIGEST = "0" * 64


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rates(clock: Clock) -> Rates:
    return Rates(clock)


def refusal(rates: Rates, key: ApiKey, tokens: int = 1) -> ApiError:
    with pytest.raises(ApiError) as caught:
        rates.admit(key, tokens)
    assert caught.value.status_code == 429
    return caught.value


def test_a_key_without_limits_is_counted_and_never_refused(rates: Rates) -> None:
    key = ApiKey(name="open", sha256=DIGEST)
    assert [rates.admit(key, 10_000) for _ in range(100)] == [{}] * 100
    assert rates.accounts["open"].requests == 100
    assert rates.accounts["open"].prompt_tokens == 1_000_000


def test_requests_beyond_the_minute_are_refused_until_the_bucket_has_refilled(rates: Rates, clock: Clock) -> None:
    key = ApiKey(name="slow", sha256=DIGEST, rpm=2)
    rates.admit(key, 1)
    rates.admit(key, 1)
    error = refusal(rates, key)
    assert error.headers is not None
    assert error.headers["Retry-After"] == "30"
    clock.now += 30
    rates.admit(key, 1)
    refusal(rates, key)


def test_output_tokens_count_and_hold_the_next_request_back(rates: Rates, clock: Clock) -> None:
    key = ApiKey(name="k", sha256=DIGEST, tpm=60)
    rates.admit(key, 10)
    rates.spend(key, 80)
    error = refusal(rates, key, 10)
    assert error.headers is not None
    assert error.headers["Retry-After"] == "40"  # from -30 to 10 at one token a second
    clock.now += 40
    rates.admit(key, 10)


def test_a_prompt_longer_than_a_minutes_worth_passes_when_the_bucket_is_full(rates: Rates) -> None:
    key = ApiKey(name="k", sha256=DIGEST, tpm=50)
    rates.admit(key, 500)
    refusal(rates, key)


def test_a_refused_request_takes_nothing(rates: Rates, clock: Clock) -> None:
    key = ApiKey(name="k", sha256=DIGEST, rpm=1, tpm=1000)
    rates.admit(key, 100)
    for _ in range(5):
        refusal(rates, key, 100)
    clock.now += 60
    assert rates.admit(key, 100)["x-ratelimit-remaining-tokens"] == "900"
    assert rates.accounts["k"].refused == 5


def test_headers_tell_limit_rest_and_time_to_full(rates: Rates) -> None:
    key = ApiKey(name="k", sha256=DIGEST, rpm=60, tpm=600)
    assert rates.admit(key, 100) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1.0s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "500",
        "x-ratelimit-reset-tokens": "10.0s",
    }


def test_a_changed_limit_counts_at_once(rates: Rates) -> None:
    rates.admit(ApiKey(name="k", sha256=DIGEST, rpm=1), 1)
    wider = ApiKey(name="k", sha256=DIGEST, rpm=5)
    assert rates.admit(wider, 1)["x-ratelimit-remaining-requests"] == "4"


def test_the_server_refuses_a_key_over_its_limit_and_counts_it(make_server: Callable[..., Server]) -> None:
    server = make_server()
    server.engine.start()
    server.launch()
    server.wait_healthy()
    digest = key_digest(KEY)
    write_atomic(server.keys, encode([ApiKey(name="team", sha256=digest, rpm=1)]))
    body = {"model": MODEL, "prompt": "the", "max_tokens": 2}
    with server.http() as http:
        first, second = (http.post("/v1/completions", json=body) for _ in range(2))
        metrics = http.get("/metrics").text
    assert (first.status_code, first.headers["x-ratelimit-remaining-requests"]) == (200, "0")
    assert (second.status_code, second.json()["error"]["type"]) == (429, "rate_limit_error")
    assert 1 <= int(second.headers["retry-after"]) <= 60
    assert f'deployctl_key_requests_refused_total{{key="team",model_name="{MODEL}"}} 1.0' in metrics
