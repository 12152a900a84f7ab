"""The bench's arithmetic: what its one table says follows from its runs."""

from __future__ import annotations

import pytest

from bench.limits import Limits, Work, output_limit
from bench.load import OUTPUT_TOKENS, Run, read_run
from bench.machine import Machine
from bench.report import PEER, US, Result, make_row, markdown, table
from bench.servers import BenchError

WORK = Work(block_weights=100_000_000, head_weights=25_000_000, kv_bytes=50_000)
LIMITS = Limits(read_gb_s=20.0, matmul_gflop_s=100.0)


def run(endpoint: str, repetition: int, speed: float, streams: int = 8) -> Run:
    return Run(endpoint, streams, repetition, 32, 30.0, speed, 500.0, 60.0, 0.1)


def result(load_before: float) -> Result:
    runs = [run(US, 0, 90.0), run(PEER, 0, 60.0)]
    machine = Machine("a processor", 2, 24.0, "Linux", load_before, "abc")
    rows = [make_row(8, runs, 180.0)]
    starts = {US: [9.0, 7.0, 8.0], PEER: [120.0]}
    return Result("2026-01-02", "python -m bench", machine, {"torch": "2.13"}, LIMITS, starts, rows, runs)


def test_a_row_compares_medians_and_shows_the_spread_of_neighbouring_runs() -> None:
    ours = [run(US, 0, 100.0), run(US, 1, 120.0), run(US, 2, 110.0)]
    peers = [run(PEER, 0, 50.0), run(PEER, 1, 40.0), run(PEER, 2, 55.0)]
    row = make_row(8, [*ours, *peers, run(US, 0, 999.0, streams=1)], limit_tokens_s=220.0)
    assert (row.output_tokens_s, row.peer_output_tokens_s) == (110.0, 50.0)
    assert (row.ratio, row.ratio_low, row.ratio_high) == (2.2, 2.0, 3.0)
    assert row.of_limit == 0.5


def test_a_row_without_a_peer_has_no_ratio() -> None:
    row = make_row(8, [run(US, 0, 100.0)], limit_tokens_s=200.0)
    assert row.ratio is None
    assert "–" in table([row])


def test_one_stream_is_limited_by_reading_the_weights() -> None:
    seconds_per_token = (WORK.block_weights + WORK.head_weights) * 4 / 20e9
    limit = output_limit(WORK, LIMITS, prompt=128, output=64, streams=1)
    assert limit == pytest.approx(1 / seconds_per_token, rel=0.02)


def test_many_streams_are_limited_by_the_matmul_of_prompts_and_outputs() -> None:
    operations = 2 * (WORK.block_weights * (128 + 63) + WORK.head_weights * 64)
    limit = output_limit(WORK, LIMITS, prompt=128, output=64, streams=32)
    assert limit == pytest.approx(64 / (operations / 100e9))


@pytest.mark.parametrize(("completed", "tokens"), [(7, 8 * OUTPUT_TOKENS), (8, 8 * OUTPUT_TOKENS - 1)])
def test_a_run_that_lost_a_request_or_a_token_is_no_result(completed: int, tokens: int) -> None:
    found: dict[str, object] = {"completed": completed, "total_output_tokens": tokens}
    with pytest.raises(BenchError, match="of 8 requests"):
        read_run(found, US, 1, 0, 8, 0.0)


def test_the_page_says_when_the_machine_was_busy() -> None:
    assert "Not a quiet machine" in markdown(result(load_before=3.0))
    assert "Not a quiet machine" not in markdown(result(load_before=0.1))


def test_the_page_gives_the_median_start() -> None:
    assert "deployctl 8.0 s (of 3)" in markdown(result(load_before=0.1))
