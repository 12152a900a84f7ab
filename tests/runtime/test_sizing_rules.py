"""What must hold for every model and machine, and the rules of dtypes, quantization and host RAM."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provision.catalog import MODELS
from runtime import sizing
from runtime.model_spec import ModelSpec
from runtime.sizing import GIB, DtypeError, Gpu, Machine, Need

A10 = Gpu("A10", 22 * GIB, (8, 6))
T4 = Gpu("T4", 15 * GIB, (7, 5))
L4 = Gpu("L4", 22 * GIB, (8, 9))

models = st.sampled_from([item.spec() for item in MODELS.values()])
sizes = st.integers(min_value=0, max_value=400 * GIB)
lengths = st.integers(min_value=16, max_value=131_072)
budgets = st.integers(min_value=16, max_value=16_384)
seqs = st.integers(min_value=1, max_value=512)


def machine(gpu: Gpu | None = None, ram_gib: int = 16, *, bf16: bool = False) -> Machine:
    ram = ram_gib * GIB
    return Machine("m", ram, ram, 4, gpu, 1 if gpu else 0, cpu_has_bf16=bf16)


def qwen() -> ModelSpec:
    return MODELS["Qwen/Qwen2.5-7B-Instruct"].spec()


@given(models, sizes, sizes)
def test_more_memory_never_holds_fewer_blocks(model: ModelSpec, one: int, two: int) -> None:
    kv = sizing.kv_bytes_per_token(model, dtype="bfloat16")
    less, more = sorted((one, two))
    assert sizing.kv_blocks(less, kv, 16) <= sizing.kv_blocks(more, kv, 16)


@given(models, sizes, lengths, lengths)
def test_longer_requests_never_run_more_at_once(model: ModelSpec, pool: int, one: int, two: int) -> None:
    blocks = sizing.kv_blocks(pool, sizing.kv_bytes_per_token(model, dtype="bfloat16"), 16)
    short, long = sorted((one, two))
    assert sizing.concurrency(blocks, long, 16) <= sizing.concurrency(blocks, short, 16)


@given(models, st.sampled_from([None, "fp8"]))
def test_more_ranks_never_hold_more_weights_each(model: ModelSpec, quantization: str | None) -> None:
    found = [
        sizing.weights_bytes(model, dtype="bfloat16", quantization=quantization, tp=tp)
        for tp in sizing.valid_tp_sizes(model, 16, quantization=quantization)
    ]
    assert found == sorted(found, reverse=True)


@given(models)
def test_all_ranks_together_hold_every_weight(model: ModelSpec) -> None:
    whole = sizing.weights_bytes(model, dtype="bfloat16")
    for tp in sizing.valid_tp_sizes(model, 16):
        assert sizing.weights_bytes(model, dtype="bfloat16", tp=tp) * tp >= whole


@given(models)
def test_weights_without_quantization_are_the_parameters_in_the_dtype(model: ModelSpec) -> None:
    assert sizing.weights_bytes(model, dtype="float32") == sizing.parameters(model) * 4
    assert sizing.weights_bytes(model, dtype="bfloat16") == sizing.parameters(model) * 2


@given(models, budgets, budgets, seqs)
def test_a_larger_step_never_needs_less_memory(model: ModelSpec, one: int, two: int, count: int) -> None:
    def peak(tokens: int) -> int:
        return sizing.activation_bytes(model, dtype="bfloat16", batched_tokens=tokens, num_seqs=count)

    assert peak(min(one, two)) <= peak(max(one, two))


@given(sizes, lengths)
def test_blocks_never_exceed_the_pool(pool: int, kv_bytes: int) -> None:
    assert sizing.kv_blocks(pool, kv_bytes, 16) * 16 * kv_bytes <= pool


def test_a_pool_that_is_overdrawn_has_no_blocks() -> None:
    need = Need(usable=10, weights=20, activation=1, fixed=1)
    assert need.pool == -12
    assert sizing.kv_blocks(need.pool, 1024, 16) == 0


def test_cpus_compute_in_float32_unless_asked() -> None:
    assert sizing.choose_dtype("auto", qwen(), machine(bf16=True)) == "float32"
    assert sizing.choose_dtype("bfloat16", qwen(), machine(bf16=True)) == "bfloat16"


def test_bfloat16_is_refused_on_a_cpu_without_its_units() -> None:
    with pytest.raises(DtypeError, match="AMX") as caught:
        sizing.choose_dtype("bfloat16", qwen(), machine())
    assert caught.value.nearest == "float32"


def test_float16_is_refused_on_cpus() -> None:
    with pytest.raises(DtypeError, match="not computed on CPUs"):
        sizing.choose_dtype("float16", qwen(), machine(bf16=True))


@pytest.mark.parametrize(("gpu", "dtype"), [(T4, "float16"), (A10, "bfloat16"), (L4, "bfloat16")])
def test_gpus_before_ampere_get_float16_in_place_of_bfloat16(gpu: Gpu, dtype: str) -> None:
    assert sizing.choose_dtype("auto", qwen(), machine(gpu)) == dtype


def test_bfloat16_asked_for_on_a_t4_is_refused_with_its_capability() -> None:
    with pytest.raises(DtypeError, match=r"7\.5"):
        sizing.choose_dtype("bfloat16", qwen(), machine(T4))


def test_a_float16_checkpoint_stays_float16() -> None:
    assert sizing.choose_dtype("auto", replace(qwen(), checkpoint_dtype="float16"), machine(A10)) == "float16"


def test_fp8_tensor_cores_begin_with_ada() -> None:
    assert L4.has_fp8
    assert not A10.has_fp8


def test_quantization_follows_the_checkpoint() -> None:
    quantized = replace(qwen(), quantization="fp8")
    assert sizing.choose_quantization("auto", quantized, machine(A10), "bfloat16") == "fp8"
    assert sizing.choose_quantization("auto", qwen(), machine(A10), "bfloat16") is None


def test_an_fp8_checkpoint_is_unpacked_on_a_cpu_and_where_it_is_asked_for() -> None:
    quantized = replace(qwen(), quantization="fp8")
    assert sizing.choose_quantization("auto", quantized, machine(None), "float32") is None
    assert sizing.choose_quantization("none", quantized, machine(A10), "bfloat16") is None
    assert sizing.cpu_weights_bytes(quantized, dtype="float32") == sizing.cpu_weights_bytes(qwen(), dtype="float32")


@pytest.mark.parametrize(
    ("int8", "dtype", "found"), [(True, "float32", "int8"), (False, "float32", None), (True, "bfloat16", None)]
)
def test_a_cpu_with_units_for_it_computes_in_int8_beside_float32(int8: bool, dtype: str, found: str | None) -> None:
    cpu = replace(machine(None), cpu_has_int8=int8)
    assert sizing.choose_quantization("auto", qwen(), cpu, dtype) == found


def test_in_int8_the_layers_and_the_head_take_a_byte_and_the_table_stays_in_float32() -> None:
    model = qwen()
    table = model.vocab_size * model.hidden_size
    found = sizing.cpu_weights_bytes(model, dtype="float32", quantization="int8")
    assert found == pytest.approx(sizing.parameters(model) + 3 * table, rel=1e-3)


def test_heads_that_are_not_whole_fp8_blocks_are_not_cut() -> None:
    model = replace(qwen(), num_heads=8, num_kv_heads=8, head_dim=32, intermediate_size=4096)
    assert sizing.valid_tp_sizes(model, 8) == (1, 2, 4, 8)
    assert sizing.valid_tp_sizes(model, 8, quantization="fp8") == (1, 2)
    assert sizing.valid_tp_sizes(replace(model, quantization="fp8"), 8) == (1, 2)
    assert "1 heads of 32" in (sizing.tp_problem(model, 8, quantization="fp8") or "")


@pytest.mark.parametrize(
    ("asked", "own", "gpu", "dtype", "reason"),
    [
        ("auto", "gptq", A10, "bfloat16", "gptq"),
        ("none", "gptq", None, "float32", "gptq"),
        ("fp8", None, None, "float32", "GPU"),
        ("fp8", "fp8", None, "float32", "GPU"),
        ("int8", None, A10, "bfloat16", "CPUs"),
        ("int8", None, None, "bfloat16", "beside float32"),
    ],
)
def test_quantization_that_cannot_run_is_refused(
    asked: str, own: str | None, gpu: Gpu | None, dtype: str, reason: str
) -> None:
    with pytest.raises(DtypeError, match=reason):
        sizing.choose_quantization(asked, replace(qwen(), quantization=own), machine(gpu), dtype)


def test_loading_onto_gpus_needs_host_ram_for_tensors_not_for_the_model() -> None:
    model = MODELS["Qwen/Qwen3-235B-A22B"].spec()
    assert sizing.gpu_host_ram_bytes(model, 8) < 0.1 * sizing.checkpoint_bytes(model)


def test_the_cpu_pool_is_a_quarter_of_free_ram_and_at_most_four_gib() -> None:
    assert sizing.cpu_pool_bytes(8 * GIB, None) == 2 * GIB
    assert sizing.cpu_pool_bytes(64 * GIB, None) == 4 * GIB
    assert sizing.cpu_pool_bytes(-GIB, None) == 0
    assert sizing.cpu_pool_bytes(8 * GIB, 3 * GIB) == 3 * GIB


def test_a_tied_embedding_lies_in_a_cpus_ram_twice() -> None:
    tied = MODELS["HuggingFaceTB/SmolLM2-135M-Instruct"].spec()
    extra = sizing.cpu_weights_bytes(tied, dtype="float32") - sizing.weights_bytes(tied, dtype="float32")
    assert extra == tied.vocab_size * tied.hidden_size * 4
    assert sizing.cpu_weights_bytes(qwen(), dtype="float32") == sizing.weights_bytes(qwen(), dtype="float32")


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(ValueError, match="int4"):
        sizing.element_bytes("int4")
