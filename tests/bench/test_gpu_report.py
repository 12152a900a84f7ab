"""The limits and the page of `make gpu-check`, by hand-made numbers; its parts on a CPU, for real."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.gpu import add
from bench.gpu_models import SHAPES, RandomWeights, shape_named
from bench.gpu_report import ModelResult, Report, SuiteRun, active_layer_weights, decode_limit, markdown, prefill_flop_s
from bench.gpu_runs import LOAD, EngineRun, GpuLimits, Load, PeerRun, measure_gpu_limits, run_engine
from bench.machine import Machine, installed_versions
from runtime import sizing
from runtime.model.checkpoint import Columns, Rows
from runtime.ops import triton_attention
from tests.lab.pretended_gpu import pretended_gpu

ROOT = Path(__file__).parents[2]
LIMITS = GpuLimits(device="NVIDIA H100 80GB HBM3", memory_gib=79.2, read_gb_s=3000.0, matmul_tflop_s=700.0)
QWEN2, QWEN3, QWEN3_FP8, MOE = SHAPES
RUN = EngineRun(
    ops="gpu",
    start_s=20.0,
    single_tokens_s=170.0,
    streams_tokens_s=4000.0,
    prefill_tokens_s=40000.0,
    weights_bytes=15_000_000_000,
    predicted_weights_bytes=15_200_000_000,
    rest_bytes=2**30,
    predicted_rest_bytes=2**30,
    kv_blocks=1000,
)
REPORT = Report(
    date="2026-01-01",
    command="python -m bench.gpu",
    machine=Machine("a CPU", 16, 128.0, "Linux", 0.0, "abc"),
    versions={"torch": "2.11"},
    dtype="bfloat16",
    load=LOAD,
    limits=LIMITS,
    tests=[SuiteRun("kernels", True, "60 passed")],
    models=[ModelResult(QWEN2, RUN, PeerRun("5.0", "sdpa", 1000.0))],
    problems=[],
)


def cells(report: Report) -> list[str]:
    line = next(line for line in markdown(report).splitlines() if line.startswith("| Qwen2.5-7B"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_shapes_have_the_sizes_of_the_models_that_they_are_named_after() -> None:
    assert sizing.parameters(QWEN2.spec) == pytest.approx(7.616e9, rel=1e-3)
    assert sizing.parameters(QWEN3.spec) == pytest.approx(8.19e9, rel=1e-3)
    whole = replace(MOE.spec, num_layers=48)
    assert sizing.parameters(whole) == pytest.approx(30.53e9, rel=1e-3)
    # The embedding is looked up, not multiplied: "A3B" counts it.
    embedding = whole.vocab_size * whole.hidden_size
    assert active_layer_weights(whole) + 2 * embedding == pytest.approx(3.35e9, rel=1e-2)


def test_a_token_of_one_stream_costs_a_read_of_the_layers_and_the_head() -> None:
    bytes_read = 2 * (sizing.parameters(QWEN2.spec) - 152064 * 3584)
    assert decode_limit(QWEN2, LIMITS, 0, "bfloat16") == pytest.approx(3000e9 / bytes_read, rel=1e-3)


def test_weights_in_fp8_halve_the_read_of_the_layers_but_not_of_head_and_kv_cache() -> None:
    gained = decode_limit(QWEN3_FP8, LIMITS, 0, "bfloat16") / decode_limit(QWEN3, LIMITS, 0, "bfloat16")
    assert 1.7 < gained < 2


def test_a_long_context_lowers_the_limit_by_its_kv_cache() -> None:
    assert decode_limit(QWEN3, LIMITS, 32768, "bfloat16") < 0.8 * decode_limit(QWEN3, LIMITS, 0, "bfloat16")


def test_the_arithmetic_of_a_prompt_is_two_for_each_weight_and_more_with_its_length() -> None:
    short = prefill_flop_s(QWEN2, 1, 1.0)
    assert short == pytest.approx(2 * 6.53e9, rel=1e-2)
    assert prefill_flop_s(QWEN2, 8192, 1.0) > short * 1.1


def test_what_misses_its_goal_has_a_star() -> None:
    good = cells(REPORT)
    assert not any("*" in cell for cell in good)
    assert good[5] == "4.00"
    bad = replace(RUN, single_tokens_s=100.0, start_s=31.0, weights_bytes=10_000_000_000, prefill_tokens_s=10_000.0)
    stars = cells(replace(REPORT, models=[ModelResult(QWEN2, bad, PeerRun("5.0", "sdpa", 2000.0))]))
    assert [index for index, cell in enumerate(stars) if "*" in cell] == [3, 5, 7, 8, 9, 10]


def test_what_was_not_measured_is_named_and_not_a_zero() -> None:
    page = markdown(replace(REPORT, limits=None, models=[ModelResult(QWEN2, None, None)], problems=["peer: no time"]))
    assert "- peer: no time" in page
    assert "0.00" not in page


def test_what_a_part_found_or_why_it_found_nothing_is_in_the_report() -> None:
    report = replace(REPORT, limits=None, models=[ModelResult(shape, None, None) for shape in (QWEN2, QWEN3)])
    report = add(add(add(report, LIMITS), RUN, 1), "engine Qwen2.5-7B: not finished after 120 s")
    report = add(report, PeerRun("5.0", "sdpa", 1000.0), 1)
    assert report.limits == LIMITS
    assert report.models == [ModelResult(QWEN2, None, None), ModelResult(QWEN3, RUN, PeerRun("5.0", "sdpa", 1000.0))]
    assert "- engine Qwen2.5-7B: not finished after 120 s" in markdown(report)


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert set(installed_versions("torch", "there-is-no-such-package")) == {"torch"}


def test_random_weights_are_cut_as_the_checkpoints_are() -> None:
    weights = RandomWeights(torch.device("cpu"))
    assert weights.take("x.weight", (8, 6), torch.float32, Rows(range(2, 5))).shape == (3, 6)
    assert weights.take("x.weight", (8, 6), torch.float32, Columns(range(2, 4))).shape == (8, 2)
    assert weights.take("a_norm.weight", (4,), torch.float32).tolist() == [1, 1, 1, 1]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "words", [["limits"], ["engine", "--shape", "tiny"], ["engine", "--shape", "tiny MoE"], ["peer", "--shape", "tiny"]]
)
def test_every_part_runs_on_a_cpu(words: list[str]) -> None:
    command = [sys.executable, "-m", "bench.gpu_runs", *words, "--device", "cpu", "--tiny"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(value for name, value in found.items() if name.endswith("_s"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["tiny", "tiny MoE"])
def test_the_engines_part_runs_on_a_gpu_that_is_played(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_attention, "PROGRAMS", 1)
    load = Load(prompt=20, output=4, single_output=18, long_prompt=32, streams=2, repetitions=1)
    with pretended_gpu() as gpu:
        assert measure_gpu_limits(torch.device("cuda"), torch.float32, tiny=True).device == "pretended"
        found = run_engine(shape_named(name), torch.device("cuda"), "float32", load, time.monotonic())
        assert gpu.replays > 0
    assert found.ops == "gpu"
    assert min(found.single_tokens_s, found.streams_tokens_s, found.prefill_tokens_s) > 0
