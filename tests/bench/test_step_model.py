"""The step model's promises: its arithmetic, its scheduler, its fit, and the page that is made from it."""

from __future__ import annotations

import math

import pytest

from bench import step_cpu, step_fit
from bench.step_machines import PCIE4, PEAKS, assumed_rates
from bench.step_model import (
    BF16,
    CPU_BF16,
    CPU_INT8,
    NOTHING,
    Link,
    Measured,
    Rates,
    Step,
    blended,
    distinct_experts,
    fit,
    parts_of,
    row,
    share_of,
    squared_error,
)
from bench.step_serving import Load, serve, steady
from bench.step_tables import PAGE, cases, rendered, spec_of
from provision.catalog import INSTANCE_TYPES, MODELS
from runtime import sizing
from runtime.engine.blocks import BlockPool
from runtime.engine.scheduler import Scheduler
from runtime.engine.sequence import Sequence
from runtime.ipc import Sampling

DENSE, SPARSE = spec_of("32B"), spec_of("235B")
DEMO = MODELS["HuggingFaceTB/SmolLM2-135M-Instruct"].spec()
FREE_LINK = Link("free", math.inf, 0.0, 0.0)
RATES = Rates(bytes_per_s=1e12, flops_per_s=1e14, step_s=0.001)
DECODE = row(1000, 1, requests=8)
PREFILL = row(0, 2048)


def closed_loop(load: Load, budget: int) -> list[Step]:
    """The steps that the engine's own scheduler makes of the load."""
    pool = BlockPool(4 * load.streams * (load.prompt + load.output), 16)
    longest = load.prompt + load.output
    scheduler = Scheduler(
        pool, max_model_len=longest, max_num_seqs=load.streams, max_batched_tokens=budget, prefix_cache=False
    )

    def request(number: int) -> Sequence:
        return Sequence(str(number), [1] * load.prompt, Sampling(load.output, ignore_eos=True))

    for number in range(load.streams):
        scheduler.add(request(number))
    sent, steps = load.streams, []
    while scheduler.has_work:
        rows = scheduler.plan()
        steps.append(sum((row(one.start, one.count, samples=one.samples) for one in rows), NOTHING))
        scheduler.apply(rows, [1] * sum(one.samples for one in rows))
        for one in rows:
            if one.samples and one.seq.finish_reason(frozenset(), longest):
                scheduler.finish(one.seq)
                if sent < load.requests:
                    scheduler.add(request(sent))
                    sent += 1
    return steps


def seconds_on(kind: str, ranks: int, step: Step, size: str = "32B") -> float:
    gpu = next(item.gpu for item in INSTANCE_TYPES.values() if item.gpu.kind == kind)
    part = share_of(spec_of(size), BF16, ranks)
    return parts_of(part, step, assumed_rates(gpu, None), PEAKS[kind].link).seconds


def test_one_rank_reads_what_sizing_says_the_model_weighs() -> None:
    for spec in (DENSE, SPARSE):
        part = share_of(spec, BF16)
        embedding = 2 * spec.vocab_size * spec.hidden_size  # looked up, not read
        whole = part.layer_bytes + part.head_bytes + part.experts * part.expert_bytes
        read = sizing.weights_bytes(spec, dtype="bfloat16") - embedding
        assert whole == pytest.approx(read, rel=1e-3)
        assert part.kv_bytes == sizing.kv_bytes_per_token(spec, dtype="bfloat16")


def test_a_token_multiplies_every_active_weight_once() -> None:
    """2 FLOPs for each: Qwen3-235B-A22B has 22 billion that are active, 21.5 without the embedding."""
    part = share_of(SPARSE, BF16)
    assert (part.token_flops + part.sample_flops) / 2 == pytest.approx(21.5e9, rel=0.02)


def test_ranks_share_the_work_out_and_no_more_than_kv_heads_share_the_cache() -> None:
    one, eight, sixteen = (share_of(DENSE, BF16, ranks) for ranks in (1, 8, 16))
    assert eight.flops(PREFILL) == pytest.approx(one.flops(PREFILL) / 8, rel=1e-6)
    assert eight.kv_bytes == one.kv_bytes / 8
    assert sixteen.kv_bytes == eight.kv_bytes


@pytest.mark.parametrize("step", [DECODE, PREFILL], ids=["decode", "prefill"])
@pytest.mark.parametrize("size", ["7B", "32B", "70B", "235B"])
def test_more_gpus_are_never_slower_but_for_their_reductions(size: str, step: Step) -> None:
    spec = spec_of(size)
    found = [parts_of(share_of(spec, BF16, ranks), step, RATES, PCIE4) for ranks in sizing.valid_tp_sizes(spec, 8)]
    rest = [parts.seconds - parts.reduce_s for parts in found]
    assert rest == sorted(rest, reverse=True)
    reductions = [parts.reduce_s for parts in found]
    assert reductions == sorted(reductions)
    assert reductions[0] == 0


def test_a_link_that_costs_nothing_leaves_the_roofline_alone() -> None:
    parts = parts_of(share_of(DENSE, BF16, 4), PREFILL, RATES, FREE_LINK)
    assert parts.reduce_s == 0
    assert parts.seconds == max(parts.memory_s, parts.math_s) + RATES.step_s


def test_several_ranks_need_a_link() -> None:
    with pytest.raises(ValueError, match="4 ranks need a link"):
        parts_of(share_of(DENSE, BF16, 4), DECODE, RATES)


def test_a_ring_moves_two_times_all_but_one_share_of_the_message() -> None:
    link = Link("1 GB/s", 1e9, 0.0, 0.0)
    assert link.all_reduce_s(1e9, 2) == pytest.approx(1.0)
    assert link.all_reduce_s(1e9, 4) == pytest.approx(1.5)
    assert Link("slow", math.inf, 5e-6, 1e-6).all_reduce_s(1e9, 4) == pytest.approx(9e-6)


def test_decodes_are_bound_by_memory_until_the_batch_reaches_the_crossover() -> None:
    """A bfloat16 weight is 2 bytes to read and 2 FLOPs for each row."""
    part, crossover = share_of(DENSE, BF16), int(RATES.flops_per_s / RATES.bytes_per_s)
    few, many = (parts_of(part, row(0, 1, requests=rows), RATES) for rows in (crossover - 10, crossover + 10))
    assert few.is_memory_bound
    assert not many.is_memory_bound


def test_narrower_weights_make_decodes_faster_in_proportion() -> None:
    half, quarter = (share_of(DEMO, widths).bytes_read(row(0, 1)) for widths in (CPU_BF16, CPU_INT8))
    assert half / quarter == pytest.approx(2, rel=0.01)


def test_a_batch_reads_more_experts_than_a_token_and_never_more_than_all() -> None:
    assert distinct_experts(128, 8, 1) == pytest.approx(8)
    assert 8 < distinct_experts(128, 8, 16) < 128
    assert distinct_experts(128, 8, 10_000) == pytest.approx(128)


def test_the_rows_of_a_chunked_prompt_attend_to_as_much_as_those_of_a_whole_one() -> None:
    chunks = row(0, 48, samples=False) + row(48, 48, samples=False) + row(96, 32)
    whole = row(0, 128)
    assert (chunks.tokens, chunks.samples, chunks.pairs) == (whole.tokens, whole.samples, whole.pairs)
    assert whole.pairs == 128 * 129 // 2


@pytest.mark.parametrize(
    ("load", "budget"),
    [
        (Load(streams=1, requests=3, prompt=40, output=5), 16),
        (Load(streams=5, requests=17, prompt=20, output=7), 48),
        (Load(streams=8, requests=16, prompt=128, output=9), 512),
        (Load(streams=6, requests=13, prompt=33, output=1), 64),
    ],
    ids=["chunks", "mixed", "waves", "first token only"],
)
def test_a_served_load_takes_the_steps_of_the_engines_scheduler(load: Load, budget: int) -> None:
    steps: list[Step] = []

    def second(step: Step) -> float:
        steps.append(step)
        return 1.0

    served = serve(load, budget, second)
    assert steps == closed_loop(load, budget)
    assert served.output_tokens_s == pytest.approx(load.requests * load.output / len(steps))


def test_the_closed_form_is_what_serving_comes_to() -> None:
    part = share_of(DENSE, BF16)

    def seconds(step: Step) -> float:
        return parts_of(part, step, RATES).seconds

    for streams in (1, 16):
        long_run = serve(Load(streams, 6 * streams, 1024, 256), 1024 + streams, seconds)
        formula = steady(streams, 1024, 256, 8192, seconds)
        assert formula.output_tokens_s == pytest.approx(long_run.output_tokens_s, rel=0.1)
        assert formula.tpot_s == pytest.approx(long_run.tpot_s, rel=0.1)


def test_a_budget_below_one_token_for_each_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="less than one for each of 8 streams"):
        serve(Load(8, 8, 16, 4), 7, lambda step: 1.0)
    with pytest.raises(ValueError, match="exceed 100 tokens"):
        steady(8, 128, 64, 100, lambda step: 1.0)


@pytest.mark.parametrize("blend", [1.0, 2.0, math.inf])
def test_a_fit_finds_the_rates_that_made_the_steps(blend: float) -> None:
    truth = Rates(bytes_per_s=18e9, flops_per_s=200e9, step_s=0.002, blend=blend)
    part = share_of(DEMO, CPU_BF16)
    steps = [step for shape in step_cpu.FITTED if (step := sum((rows.step for rows in shape), NOTHING))]
    measured = [Measured(step, parts_of(part, step, truth).seconds) for step in steps]
    found = fit(part, measured)
    assert squared_error(part, measured, found) < 1e-6
    assert (found.bytes_per_s, found.flops_per_s, found.step_s) == pytest.approx((18e9, 200e9, 0.002), rel=0.02)


def test_steps_of_one_kind_cannot_tell_memory_from_arithmetic() -> None:
    part = share_of(DEMO, CPU_BF16)
    with pytest.raises(ValueError, match="three steps or more"):
        fit(part, [Measured(DECODE, 0.1)])
    with pytest.raises(ValueError, match="measure decodes and prefills"):
        fit(part, [Measured(DECODE, 0.1)] * 4)


def test_blends_lie_between_the_larger_and_the_sum() -> None:
    assert blended(3.0, 4.0, 1.0) == 7.0
    assert blended(3.0, 4.0, 2.0) == 5.0
    assert blended(3.0, 4.0, math.inf) == 4.0
    assert blended(0.0, 0.0, 2.0) == 0.0


def test_measured_servers_are_read_by_precision_as_medians() -> None:
    def run(endpoint: str, speed: float) -> dict[str, object]:
        times = {"ttft_ms": 100.0, "tpot_ms": 20.0, "requests": 16}
        return {"endpoint": endpoint, "streams": 8, "output_tokens_s": speed, **times}

    runs = [run("deployctl", 10.0), run("deployctl", 30.0), run("deployctl", 20.0)]
    found: dict[str, object] = {"runs": [*runs, run("deployctl int8", 90.0), run("vLLM", 1.0)]}
    exact, narrow = (step_fit.read_servers(found, quantization)[8] for quantization in ("none", "int8"))
    assert (exact.output_tokens_s, exact.ttft_s, exact.tpot_s, exact.requests) == (20.0, 0.1, 0.02, 16)
    assert narrow.output_tokens_s == 90.0


def test_a_prediction_is_for_the_load_that_was_measured() -> None:
    server = step_fit.Server(requests=40, output_tokens_s=50.0, ttft_s=0.5, tpot_s=0.1)
    load = step_fit.load_of(8, server)
    assert (load.streams, load.requests) == (8, 40)
    assert step_fit.load_of(8, None).requests >= 8
    assert step_fit.predict(share_of(DEMO, CPU_BF16), Rates(18e9, 200e9, 0.002), load).output_tokens_s > 0


def test_every_gpu_of_the_catalog_has_a_peak() -> None:
    assert {item.gpu.kind for item in INSTANCE_TYPES.values()} == set(PEAKS)


def test_fp8_weights_are_multiplied_in_16_bits_where_there_are_no_units_for_them() -> None:
    old, new = (INSTANCE_TYPES[name].gpu for name in ("ecs.gn7i-c8g1.2xlarge", "p5.4xlarge"))
    assert assumed_rates(old, "fp8").flops_per_s == assumed_rates(old, None).flops_per_s
    assert assumed_rates(new, "fp8").flops_per_s > assumed_rates(new, None).flops_per_s


def test_models_of_32_billion_weights_are_one_row_of_the_page() -> None:
    """The page shows Qwen2.5-32B for QwQ, R1-Distill-Qwen-32B and Qwen3-32B too."""
    shown = parts_of(share_of(DENSE, BF16), DECODE, RATES).seconds
    for name in ("Qwen/QwQ-32B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "Qwen/Qwen3-32B"):
        other = parts_of(share_of(MODELS[name].spec(), BF16), DECODE, RATES).seconds
        assert other == pytest.approx(shown, rel=0.02)


def test_dollars_for_a_million_tokens_are_price_over_rate() -> None:
    case = next(case for case in cases("7B", "none") if case.item.name == "ecs.gn7i-c8g1.2xlarge")
    assert case.item.price is not None
    tokens_per_hour = case.full.output_tokens_s * 3600
    assert case.usd_per_million == pytest.approx(case.item.price.usd_per_hour / tokens_per_hour * 1_000_000)


def test_the_sentences_of_the_page_follow_from_its_tables() -> None:
    a10 = {case.item.gpu_count: case for case in cases("7B", "none") if case.item.gpu.kind == "A10"}
    assert 8 * a10[1].full.output_tokens_s > 4 * a10[8].full.output_tokens_s
    assert a10[1].item.price is not None
    assert a10[8].item.price is not None
    assert 8 * a10[1].item.price.usd_per_hour == pytest.approx(a10[8].item.price.usd_per_hour)
    assert 4 * a10[1].full.output_tokens_s > 2 * a10[4].full.output_tokens_s
    assert (round(1e3 * a10[1].alone.tpot_s), round(1e3 * a10[4].alone.tpot_s)) == (30, 9)
    for kind in ("A100 80GB", "H100"):
        assert (
            4 <= seconds_on(kind, 1, row(1151, 1, requests=32)) / seconds_on(kind, 8, row(1151, 1, requests=32)) < 5.5
        )
        assert 4.5 < seconds_on(kind, 1, row(0, 1024)) / seconds_on(kind, 8, row(0, 1024)) < 6.5
    assert seconds_on("L40S", 2, row(0, 1024), "7B") > seconds_on("L40S", 1, row(0, 1024), "7B")


def test_the_page_says_what_the_model_says_now() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert "<!-- table: " in page
    assert page == rendered(page), "run: python -m bench.step_model tables"
