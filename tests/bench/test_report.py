"""The bench's arithmetic: what its one table says follows from its runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.chart import draw
from bench.limits import BF16, FP32, Form, Limits, Work, decode_limit_ms, form_fp32, form_int8, output_limit
from bench.load import OUTPUT_TOKENS, Run, read_run
from bench.machine import Machine
from bench.plan import expected_minutes
from bench.report import FP32 as OUR_FP32
from bench.report import (
    INT8,
    OURS,
    PEER_BF16,
    PEER_FP32,
    PEERS,
    Memory,
    Other,
    Result,
    make_row,
    markdown,
    others_table,
)
from bench.servers import BenchError

WORK = Work(block_weights=100_000_000, head_weights=25_000_000, kv_numbers=12_500)
LIMITS = Limits(read_gb_s=20.0, fp32_gflop_s=100.0, bf16_gflop_s=0.0, int8_gflop_s=200.0)
AMX = Limits(read_gb_s=20.0, fp32_gflop_s=100.0, bf16_gflop_s=900.0, int8_gflop_s=1000.0)
PLAIN = Form(weight_bytes=FP32, gflop_s=100.0)


def run(endpoint: str, repetition: int, speed: float, streams: int = 8, ttft: float = 500.0) -> Run:
    return Run(endpoint, streams, repetition, 32, 30.0, speed, ttft, 60.0)


def result(load_before: float) -> Result:
    runs = [
        *(run(OUR_FP32, 0, 90.0), run(INT8, 0, 150.0), run(PEER_FP32, 0, 60.0), run(PEER_BF16, 0, 30.0)),
        *(run(name, 0, speed, streams=1) for name, speed in ((OUR_FP32, 10.0), (INT8, 16.0), (PEER_FP32, 5.0))),
    ]
    return Result(
        name="2026-01-02-cpu",
        date="2026-01-02",
        command="python -m bench",
        machine=Machine("a processor", 2, 24.0, "Linux", load_before, "abc"),
        versions={"torch": "2.13"},
        limits=LIMITS,
        weight_bytes={OUR_FP32: 2, INT8: 1},
        decode_limit_ms={OUR_FP32: 15.0, INT8: 6.0},
        first_token_s={OUR_FP32: [9.0, 7.0, 8.0], PEER_FP32: [120.0]},
        memory={OUR_FP32: Memory(peak=1_500_000_000, weights=200_000_000, kv_pool=1_000_000_000, imports=300_000_000)},
        rows=[make_row(run.endpoint, run.streams, runs, 180.0 if run.endpoint in OURS else None) for run in runs],
        others=[Other("llama.cpp q8_0", INT8, 1, 8.0, 300.0, "without AMX")],
        problems=["transformers: not finished in 240 s"],
        runs=runs,
    )


def test_a_row_compares_medians_and_shows_the_spread_of_neighbouring_runs() -> None:
    ours = [run(OUR_FP32, 0, 100.0), run(OUR_FP32, 1, 120.0), run(OUR_FP32, 2, 110.0)]
    peers = [run(PEER_FP32, 0, 50.0), run(PEER_FP32, 1, 40.0), run(PEER_FP32, 2, 55.0)]
    row = make_row(OUR_FP32, 8, [*ours, *peers, run(OUR_FP32, 0, 999.0, streams=1)])
    assert row.output_tokens_s == 110.0
    assert row.same is not None
    assert (row.same.speed, row.same.low, row.same.high) == (2.2, 2.0, 3.0)


def test_the_better_peer_is_the_one_with_more_tokens_at_that_level() -> None:
    runs = [run(INT8, 0, 100.0, ttft=100.0), run(PEER_FP32, 0, 20.0), run(PEER_BF16, 0, 25.0, ttft=400.0)]
    better = make_row(INT8, 8, runs).better
    assert better is not None
    assert (better.peer, better.speed, better.ttft) == (PEER_BF16, 4.0, 0.25)


def test_int8_has_no_peer_of_the_same_precision() -> None:
    assert make_row(INT8, 8, [run(INT8, 0, 100.0), run(PEER_FP32, 0, 20.0)]).same is None


def test_a_row_without_a_peer_has_no_ratio() -> None:
    row = make_row(OUR_FP32, 8, [run(OUR_FP32, 0, 100.0)])
    assert (row.same, row.better) == (None, None)


def test_one_stream_is_limited_by_reading_the_weights_in_their_width() -> None:
    for width in (1, 2, 4):
        seconds_per_token = (WORK.block_weights + WORK.head_weights) * width / 20e9
        limit = output_limit(WORK, LIMITS, Form(width, 1e6), prompt=128, output=64, streams=1)
        assert limit == pytest.approx(1 / seconds_per_token, rel=0.1)


def test_one_token_takes_as_long_as_reading_weights_and_context() -> None:
    milliseconds = (125_000_000 * 2 + 160 * 50_000) / 20e6
    found = decode_limit_ms(WORK, LIMITS, Form(BF16, 1.0), prompt=128, output=64)
    assert found == pytest.approx(milliseconds)


def test_many_streams_are_limited_by_the_matmul_of_prompts_and_outputs() -> None:
    operations = 2 * (WORK.block_weights * (128 + 63) + WORK.head_weights * 64)
    limit = output_limit(WORK, LIMITS, PLAIN, prompt=128, output=64, streams=32)
    assert limit == pytest.approx(64 / (operations / 100e9))


def test_only_weights_in_bfloat16_can_pass_the_peak_of_fp32_units() -> None:
    assert form_fp32(AMX, BF16).gflop_s == 300.0
    assert form_fp32(AMX, FP32).gflop_s == 100.0
    assert form_fp32(LIMITS, BF16).gflop_s == 100.0


def test_int8_is_limited_by_the_fastest_units() -> None:
    assert form_int8(AMX) == Form(1, 1000.0, 2)
    assert form_int8(Limits(20.0, 100.0, 900.0, 2.0)).gflop_s == 900.0


@pytest.mark.parametrize(("completed", "tokens"), [(7, 8 * OUTPUT_TOKENS), (8, 8 * OUTPUT_TOKENS - 1)])
def test_a_run_that_lost_a_request_or_a_token_is_no_result(completed: int, tokens: int) -> None:
    found: dict[str, object] = {"completed": completed, "total_output_tokens": tokens}
    with pytest.raises(BenchError, match="of 8 requests"):
        read_run(found, INT8, 1, 0, 8)


def test_the_page_says_when_the_machine_was_busy() -> None:
    assert "Not a quiet machine" in markdown(result(load_before=3.0))
    assert "Not a quiet machine" not in markdown(result(load_before=0.1))


def test_the_page_gives_the_median_start() -> None:
    assert f"Start to first token, {OUR_FP32}: 8.0 s, of 3 (goal" in markdown(result(load_before=0.1))


def test_the_page_gives_decode_as_a_share_of_the_bandwidth() -> None:
    assert "takes 15.00 ms: **25 %**" in markdown(result(load_before=0.1))


def test_the_page_gives_peak_memory_beside_what_it_may_be() -> None:
    page = markdown(result(load_before=0.1))
    assert "1,500 MB; weights 200 MB × 1.3 + KV pool 1,000 MB = 1,260 MB" in page


def test_another_engine_stands_beside_ours_of_its_precision() -> None:
    found = result(load_before=0.1)
    shown = others_table(found.others, found.rows)
    assert "2.00×" in shown
    assert "without AMX" in shown


def test_the_page_says_which_engine_was_not_measured() -> None:
    assert "Not measured: transformers: not finished" in markdown(result(load_before=0.1))


def test_the_chart_is_a_picture(tmp_path: Path) -> None:
    draw(result(load_before=0.1), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_a_whole_run_is_planned_to_take_about_a_quarter_of_an_hour() -> None:
    assert 13 < expected_minutes([*OURS, *PEERS], [1, 8, 32], 3, 3, others=True) < 17
