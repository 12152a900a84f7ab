"""The plan: what fits, what does not, and what would."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provision.catalog import INSTANCE_TYPES, MODELS
from provision.model_source import model_spec_for
from provision.planning import Plan, make_plan, not_yet, plan_deployment
from provision.spec import parse
from runtime.sizing import GIB, Gpu, Machine

LAPTOP = Machine("this machine", 16 * GIB, 12 * GIB, 8, free_disk_bytes=100 * GIB)
ALI = {"cloud": "alicloud"}
AWS = {"cloud": "aws"}
Q7 = "Qwen/Qwen2.5-7B-Instruct"


def plan(machine: Machine | None = None, /, **values: Any) -> Plan:
    spec = parse(values)
    return plan_deployment(spec, model_spec_for(spec), machine)


def reason(found: Plan) -> str:
    assert not found.fits
    assert len(found.reasons) == 1, found.reasons
    return found.reasons[0]


# ---- the seed cases ----


def test_qwq_32b_fits_four_a10_at_8192() -> None:
    found = plan(**ALI, instance_type="ecs.gn7i-4x.16xlarge", model="Qwen/QwQ-32B", max_model_len=8192)
    assert found.fits
    assert (found.tensor_parallel, found.dtype, found.max_model_len) == (4, "bfloat16", 8192)
    assert found.concurrency == pytest.approx(7.6, abs=0.05)


def test_qwen3_235b_fits_eight_h20() -> None:
    found = plan(**ALI, instance_type="ecs.ebmgn8v.48xlarge", model="Qwen/Qwen3-235B-A22B")
    assert found.fits
    assert (found.tensor_parallel, found.max_model_len) == (8, 32768)


def test_a_7b_model_on_eight_gpus_is_cut_into_four_and_the_reason_is_said() -> None:
    found = plan(**AWS, instance_type="g6.48xlarge", model=Q7)
    assert found.fits
    assert found.tensor_parallel == 4
    assert "tensor parallel is 4, not 8: 28 attention heads do not divide by 8" in found.notes
    assert any("4 of 8 GPUs stay idle" in warning for warning in found.warnings)


# ---- what does not fit ----


def test_what_does_not_fit_names_the_cheapest_types_that_do() -> None:
    found = plan(**AWS, instance_type="g5.xlarge", model="Qwen/QwQ-32B")
    assert "weights 61.0 GiB" in reason(found)
    assert 1 <= len(found.alternatives) <= 3
    prices = [item.usd_per_hour for item in found.alternatives]
    assert prices == sorted(prices, key=lambda price: (price is None, price))
    for item in found.alternatives:
        assert make_plan(
            parse({**AWS, "model": "Qwen/QwQ-32B"}),
            MODELS["Qwen/QwQ-32B"].spec(),
            INSTANCE_TYPES[item.instance_type],
        ).fits


def test_no_cheaper_type_than_the_first_alternative_fits() -> None:
    found = plan(**ALI, instance_type="ecs.gn7i-c8g1.2xlarge", model="Qwen/QwQ-32B", max_model_len=8192)
    first = found.alternatives[0].usd_per_hour
    assert first is not None
    spec = parse({**ALI, "model": "Qwen/QwQ-32B", "max_model_len": 8192})
    cheaper = [
        item
        for item in INSTANCE_TYPES.values()
        if item.cloud == "alicloud" and item.price and item.price.usd_per_hour < first
    ]
    assert cheaper
    assert not any(make_plan(spec, model_spec_for(spec), item).fits for item in cheaper)


def test_a_request_longer_than_the_model_allows_is_refused_and_names_rope_scaling() -> None:
    found = plan(LAPTOP, model="demo", max_model_len=16384)
    assert "8192" in reason(found)
    assert "rope_scaling" in reason(found)


def test_rope_scaling_lifts_the_models_limit() -> None:
    scaling = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8192}
    found = plan(LAPTOP, model="demo", max_model_len=16384, rope_scaling=scaling)
    assert found.fits
    assert found.engine_options().rope_scaling == scaling


def test_one_request_that_does_not_fit_the_cache_is_refused_with_the_length_that_does() -> None:
    found = plan(**AWS, instance_type="g6.xlarge", model="Qwen/Qwen2.5-7B-Instruct", max_model_len=32768)
    assert found.fits
    tight = plan(LAPTOP, model="demo", max_model_len=8192, kv_cache_gib=0.1)
    assert "holds 2304" in reason(tight)


def test_a_cache_larger_than_what_is_left_is_refused() -> None:
    assert "kv_cache_gib 20" in reason(plan(LAPTOP, model="demo", kv_cache_gib=20))


def test_bfloat16_on_a_t4_is_refused_with_what_to_use() -> None:
    found = plan(**AWS, instance_type="g4dn.xlarge", model="Qwen/Qwen2.5-1.5B-Instruct", dtype="bfloat16")
    assert "use float16" in reason(found)


def test_a_disk_too_small_for_the_weights_is_refused_with_the_size_needed() -> None:
    found = plan(**ALI, instance_type="ecs.gn7i-4x.16xlarge", model="Qwen/QwQ-32B", max_model_len=8192, disk_gib=100)
    assert reason(found) == "disk_gib 100: system, runtime and weights need 170"


def test_a_full_local_disk_is_seen_before_the_download() -> None:
    full = replace(LAPTOP, free_disk_bytes=2 * GIB)
    assert "2.0 GiB free" in reason(plan(full, model="Qwen/Qwen2.5-1.5B-Instruct"))


def test_a_model_too_large_for_this_machine_names_weights_and_free_ram() -> None:
    assert "12.0 GiB of free RAM" in reason(plan(LAPTOP, model=Q7))


def test_host_ram_too_small_to_load_is_refused() -> None:
    poor = Machine("poor", 4 * GIB, 3 * GIB, 2, Gpu("L4", 22 * GIB, (8, 9)), 1, free_disk_bytes=100 * GIB)
    assert "host RAM" in reason(plan(poor, model="Qwen/Qwen2.5-1.5B-Instruct"))


# ---- choices ----


def test_this_machine_serves_the_demo_in_float32_with_room_for_many() -> None:
    found = plan(LAPTOP)
    assert found.fits
    assert (found.device, found.dtype, found.max_model_len, found.max_num_seqs) == ("cpu", "float32", 8192, 64)
    assert found.kv_cache_bytes == pytest.approx(0.25 * (12 - 0.6 - 0.75) * GIB, rel=0.01)
    assert found.cost is None


def test_the_context_that_nobody_asked_for_is_what_fits() -> None:
    found = plan(LAPTOP, model="demo", kv_cache_gib=0.2)
    assert found.fits
    assert found.max_model_len % 256 == 0
    assert 0.8 < found.max_model_len / (found.kv_blocks * found.block_size) < 1
    assert any("what the KV cache holds" in note for note in found.notes)


def test_without_an_instance_type_the_cheapest_that_fits_is_chosen() -> None:
    found = plan(**AWS, model=Q7)
    assert found.fits
    assert found.instance_type == "g6.xlarge"


def test_a_model_too_large_for_every_type_says_so_without_alternatives() -> None:
    found = plan(**AWS, model="Qwen/Qwen3-235B-A22B", kv_cache_gib=4000)
    assert not found.fits
    assert found.alternatives == ()


def test_a_second_choice_that_does_not_fit_is_a_warning() -> None:
    found = plan(**AWS, model=Q7, instance_type="g6.xlarge,g4dn.xlarge")
    assert found.fits
    assert any(warning.startswith("g4dn.xlarge does not fit") for warning in found.warnings)


def test_fp8_halves_the_weights_and_says_when_the_gpu_has_no_fp8_units() -> None:
    found = plan(**AWS, instance_type="g5.xlarge", model=Q7, quantization="fp8")
    assert found.weights_bytes == pytest.approx(8.1 * GIB, rel=0.01)
    assert any("no fp8 units" in note for note in found.notes)


def test_a_checkpoint_in_fp8_is_unpacked_on_a_cpu_and_the_plan_says_so() -> None:
    spec = parse({"model": Q7, "quantization": "none"})
    found = make_plan(spec, replace(model_spec_for(spec), quantization="fp8"), LAPTOP)
    assert "the checkpoint is in fp8 and is unpacked to float32 at load" in found.notes


def test_several_local_gpus_are_not_cut_across_when_one_is_enough() -> None:
    two = Machine("two", 64 * GIB, 60 * GIB, 16, Gpu("L4", 22 * GIB, (8, 9)), 2, free_disk_bytes=100 * GIB)
    found = plan(two, model=Q7)
    assert (found.fits, found.tensor_parallel) == (True, 1)


def test_the_number_of_gpus_that_share_the_model_can_be_chosen() -> None:
    found = plan(**AWS, instance_type="g6.12xlarge", model=Q7, tensor_parallel=2)
    assert (found.fits, found.tensor_parallel) == (True, 2)
    assert found.engine_options().tensor_parallel == 2
    assert "tensor parallel is 2, not 4: as asked" in found.notes
    assert any("2 of 4 GPUs stay idle" in warning for warning in found.warnings)
    two = Machine("two", 64 * GIB, 60 * GIB, 16, Gpu("L4", 22 * GIB, (8, 9)), 2, free_disk_bytes=100 * GIB)
    assert plan(two, model=Q7, tensor_parallel=2).tensor_parallel == 2


@pytest.mark.parametrize(
    ("machine", "values", "why"),
    [
        (None, {**AWS, "instance_type": "g6.48xlarge", "model": Q7, "tensor_parallel": 8}, "28 attention heads"),
        (None, {**AWS, "instance_type": "g6.xlarge", "model": Q7, "tensor_parallel": 2}, "has 1 GPU; valid here: 1"),
        (LAPTOP, {"model": "demo", "tensor_parallel": 3}, "tensor_parallel 3: this machine has no GPUs; valid here: 1"),
    ],
)
def test_a_number_of_gpus_that_cannot_be_is_refused_with_the_valid_ones(
    machine: Machine | None, values: dict[str, Any], why: str
) -> None:
    told = reason(plan(machine, **values))
    assert why in told
    assert "valid here: 1" in told


def test_without_a_type_the_cheapest_with_enough_gpus_is_chosen() -> None:
    found = plan(**AWS, model=Q7, tensor_parallel=4)
    assert (found.fits, found.tensor_parallel, found.machine.gpu_count) == (True, 4, 4)


# ---- money, time, warnings ----


def test_cost_names_hour_day_and_the_time_until_the_ttl() -> None:
    cost = plan(**AWS, instance_type="g6.xlarge", model=Q7, ttl="4h").cost
    assert cost is not None
    assert cost.usd_per_hour == pytest.approx(0.8048 + 0.005 + 120 * 0.08 / 730)
    assert cost.usd_per_day == pytest.approx((cost.usd_per_hour or 0) * 24)
    assert cost.usd_until_ttl == pytest.approx((cost.usd_per_hour or 0) * 4)


def test_an_unknown_price_is_unknown_and_not_zero() -> None:
    cost = plan(**ALI, instance_type="ecs.ebmgn8v.48xlarge", model="Qwen/Qwen3-235B-A22B").cost
    assert cost is not None
    assert cost.usd_per_hour is None
    assert cost.usd_until_ttl is None
    assert "ecs.ebmgn8v.48xlarge" in cost.unknown


def test_nat_for_an_intranet_endpoint_is_priced() -> None:
    cost = plan(**AWS, instance_type="g6.xlarge", model=Q7, endpoint="intranet").cost
    assert cost is not None
    assert [item.name for item in cost.items][-1] == "NAT gateway"


def test_the_download_through_an_alibaba_address_takes_as_long_as_its_bandwidth_says() -> None:
    found = plan(**ALI, instance_type="ecs.gn7i-4x.16xlarge", model="Qwen/QwQ-32B", max_model_len=8192)
    assert found.download_seconds is not None
    assert found.download_seconds / 60 == pytest.approx(44, abs=1)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({**AWS, "allowed_cidrs": "0.0.0.0/0"}, "whole internet"),
        ({**AWS, "tls": "off"}, "clear text"),
        ({**AWS, "ttl": "0"}, "deployctl down"),
        ({**ALI, "model": f"hf:{Q7}"}, "modelscope:Qwen"),
        ({**AWS, "spot": True}, "taken back"),
        ({**AWS, "instance_type": "g6.xlarge", "max_model_len": 32768, "kv_cache_gib": 2}, "waits"),
        ({**AWS, "instance_type": "g4dn.xlarge", "model": "Qwen/Qwen2.5-1.5B-Instruct"}, "overflow"),
    ],
)
def test_what_will_surprise_is_a_warning(values: dict[str, Any], word: str) -> None:
    found = plan(**{"model": Q7, **values})
    assert found.fits
    assert any(word in warning for warning in found.warnings), found.warnings


# ---- what travels on ----


def test_the_engine_is_told_what_the_plan_decided() -> None:
    found = plan(LAPTOP, max_num_seqs=32)
    options = found.engine_options()
    assert (options.dtype, options.device, options.max_model_len) == ("float32", "cpu", 8192)
    assert (options.max_num_seqs, options.block_size) == (32, 16)
    assert found.predicted().kv_blocks == found.kv_blocks > 0


@pytest.mark.parametrize("values", [{**AWS, "instance_type": "g6.xlarge", "model": Q7}, {}])
def test_the_engine_measures_its_own_cache_unless_the_user_set_its_size(values: dict[str, Any]) -> None:
    free = plan(LAPTOP, **values)
    told = plan(LAPTOP, **values, kv_cache_gib=2)
    assert free.engine_options().kv_cache_bytes is None
    assert told.engine_options().kv_cache_bytes == 2 * GIB


def test_the_demo_on_this_machine_can_be_started() -> None:
    assert not_yet(parse({})) == []


@pytest.mark.parametrize(
    "values",
    [
        {**AWS, "instance_type": "g6.xlarge", "model": Q7},
        {**AWS, "instance_type": "g6.12xlarge", "model": Q7},
        {**AWS, "instance_type": "g6.12xlarge", "model": Q7, "quantization": "fp8"},
        {**ALI, "instance_type": "ecs.gn7i-c8g1.2xlarge", "model": f"modelscope:{Q7}"},
    ],
)
def test_a_model_on_one_or_more_gpus_of_a_cloud_can_be_started(values: dict[str, Any]) -> None:
    assert not_yet(parse(values)) == []


# ---- properties ----

names = st.sampled_from(list(MODELS))
lengths = st.integers(min_value=64, max_value=8192)


@given(names, st.integers(min_value=2, max_value=512), st.integers(min_value=0, max_value=512))
def test_more_ram_never_fits_less(name: str, ram_gib: int, more_gib: int) -> None:
    def on(gib: int) -> Plan:
        machine = Machine("m", gib * GIB, gib * GIB, 4, free_disk_bytes=10_000 * GIB)
        return plan(machine, model=name, max_model_len=4096)

    less, more = on(ram_gib), on(ram_gib + more_gib)
    assert more.fits or not less.fits
    assert more.concurrency >= less.concurrency


@given(names, lengths, lengths)
def test_a_longer_request_never_fits_where_a_shorter_one_does_not(name: str, one: int, two: int) -> None:
    def on(length: int) -> Plan:
        return plan(**AWS, instance_type="g5.12xlarge", model=name, max_model_len=length)

    short, long = on(min(one, two)), on(max(one, two))
    assert short.fits or not long.fits
    assert short.concurrency >= long.concurrency


@given(names, st.sampled_from([item.name for item in INSTANCE_TYPES.values() if item.cloud == "aws"]))
def test_a_plan_that_fits_is_within_memory_and_holds_one_request(name: str, instance: str) -> None:
    found = plan(**AWS, model=name, instance_type=instance)
    assert found.fits is not bool(found.reasons)
    if found.fits:
        held = found.weights_bytes + found.activation_bytes + found.fixed_bytes
        cache = found.kv_blocks * found.block_size * found.kv_bytes_per_token
        assert held + cache <= found.usable_bytes
        assert found.concurrency >= 1
        assert found.tensor_parallel <= found.machine.gpu_count
