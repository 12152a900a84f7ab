"""The catalog: instance types, regions and models."""

from __future__ import annotations

import pytest

from provision.catalog import INSTANCE_TYPES, MODELS, REGIONS, counterpart, instance_types
from provision.model_ref import parse_model
from runtime.sizing import GIB


def test_the_ten_models_are_there_and_readable() -> None:
    assert len(MODELS) == 10
    assert {item.spec().family for item in MODELS.values()} == {"llama", "qwen2", "qwen3", "qwen3_moe"}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_can_be_named_in_a_spec(name: str) -> None:
    assert parse_model(name).location == name


def test_the_70b_model_has_llama3_rope_scaling() -> None:
    scaling = MODELS["deepseek-ai/DeepSeek-R1-Distill-Llama-70B"].spec().rope_scaling
    assert scaling is not None
    assert (scaling.kind, scaling.factor, scaling.original_max_position) == ("llama3", 8.0, 8192)


@pytest.mark.parametrize(
    ("name", "gpus", "kind", "vcpus", "ram"),
    [
        ("ecs.gn7i-c8g1.2xlarge", 1, "A10", 8, 30),
        ("ecs.gn7i-4x.16xlarge", 4, "A10", 64, 256),
        ("ecs.gn7e-c16g1.32xlarge", 8, "A100 80GB", 128, 1000),
        ("ecs.gn8is-8x.32xlarge", 8, "L20", 128, 1024),
        ("ecs.ebmgn8v.48xlarge", 8, "H20", 192, 1024),
        ("g4dn.12xlarge", 4, "T4", 48, 192),
        ("g5.xlarge", 1, "A10G", 4, 16),
        ("g6e.48xlarge", 8, "L40S", 192, 1536),
        ("p5.4xlarge", 1, "H100", 16, 256),
        ("p4de.24xlarge", 8, "A100 80GB", 96, 1152),
    ],
)
def test_types_have_the_published_shape(name: str, gpus: int, kind: str, vcpus: int, ram: int) -> None:
    item = INSTANCE_TYPES[name]
    assert (item.gpu_count, item.gpu.kind, item.vcpus, item.ram_gib) == (gpus, kind, vcpus, ram)


def test_bf16_and_fp8_follow_the_compute_capability() -> None:
    able = {item.gpu.kind: (item.gpu.has_bf16, item.gpu.has_fp8) for item in INSTANCE_TYPES.values()}
    assert able["T4"] == able["V100 16GB"] == (False, False)
    assert able["A10"] == able["A100 80GB"] == (True, False)
    assert able["L4"] == able["L20"] == able["H20"] == (True, True)


def test_prices_are_dated_estimates_with_a_source_or_unknown() -> None:
    for item in INSTANCE_TYPES.values():
        if item.price is not None:
            assert item.price.label == "estimate"
            assert item.price.date
            assert item.price.source
            assert item.price.usd_per_hour > 0


@pytest.mark.parametrize("cloud", REGIONS)
def test_types_come_cheapest_first_and_unknown_prices_last(cloud: str) -> None:
    prices = [item.price.usd_per_hour if item.price else None for item in instance_types(cloud)]
    known = [price for price in prices if price is not None]
    assert known == sorted(known)
    assert prices[: len(known)] == known


def test_newer_alibaba_families_boot_from_the_essd_family_only() -> None:
    for item in instance_types("alicloud"):
        newer = not item.name.startswith("ecs.gn6")
        assert ("cloud_efficiency" not in item.disk.categories) is newer


def test_the_bare_metal_type_needs_uefi() -> None:
    assert [item.name for item in INSTANCE_TYPES.values() if item.needs_uefi] == ["ecs.ebmgn8v.48xlarge"]


def test_a_type_becomes_a_machine_with_the_systems_share_taken_off() -> None:
    machine = INSTANCE_TYPES["ecs.gn7i-c8g1.2xlarge"].machine()
    assert machine.ram_bytes == 30 * GIB
    assert machine.free_ram_bytes < machine.ram_bytes


def test_the_other_clouds_counterpart_has_as_many_gpus() -> None:
    like = counterpart(INSTANCE_TYPES["g6e.48xlarge"], "alicloud")
    assert like is not None
    assert INSTANCE_TYPES[like].gpu_count == 8
    assert INSTANCE_TYPES[like].gpu.kind == "L20"
