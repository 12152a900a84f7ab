"""The worked tables: parameters, weights, KV bytes and concurrency of the ten models on five GPUs."""

from __future__ import annotations

import pytest

from provision.catalog import MODELS
from runtime import sizing
from runtime.model_spec import ModelSpec
from runtime.sizing import GIB

SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"
Q1 = "Qwen/Qwen2.5-1.5B-Instruct"
Q7 = "Qwen/Qwen2.5-7B-Instruct"
R7 = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
Q32 = "Qwen/Qwen2.5-32B-Instruct"
QWQ = "Qwen/QwQ-32B"
R32 = "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"
Q3_32 = "Qwen/Qwen3-32B"
R70 = "deepseek-ai/DeepSeek-R1-Distill-Llama-70B"
Q235 = "Qwen/Qwen3-235B-A22B"
ALL_32B = (Q32, QWQ, R32, Q3_32)

# Usable GiB, and the step's (tokens, sequences).
GPUS = {
    "A10": (22.49, 2048, 64),
    "L4": (22.49, 2048, 64),
    "L40S": (44.99, 8192, 256),
    "A100": (79.25, 8192, 256),
    "H20": (95.1, 8192, 256),
}

# model: billions of parameters, bf16 GiB, fp8 GiB, KV KiB per token, GiB at 8k, at 32k, valid TP
SHAPES = {
    SMOL: (0.135, 0.25, 0.15, 22.5, 0.18, 0.70, (1, 3)),
    Q1: (1.544, 2.9, 1.7, 28, 0.22, 0.88, (1, 2, 4)),
    Q7: (7.616, 14.2, 8.1, 56, 0.44, 1.75, (1, 2, 4)),
    R7: (7.616, 14.2, 8.1, 56, 0.44, 1.75, (1, 2, 4)),
    Q32: (32.76, 61.0, 32.0, 256, 2, 8, (1, 2, 4, 8)),
    QWQ: (32.76, 61.0, 32.0, 256, 2, 8, (1, 2, 4, 8)),
    R32: (32.76, 61.0, 32.0, 256, 2, 8, (1, 2, 4, 8)),
    Q3_32: (32.76, 61.0, 32.0, 256, 2, 8, (1, 2, 4, 8, 16)),
    R70: (70.55, 131.4, 67.7, 320, 2.5, 10, (1, 2, 4, 8, 16)),
    Q235: (235.09, 437.9, 220.2, 188, 1.47, 5.88, (1, 2, 4, 8, 16)),
}

# Concurrent full-length requests on 1, 2, 4, 8 GPUs: "bf16 at 8k / 32k ‖ fp8 at 8k / 32k".
# "no": less than one; "no(24k)": the longest request that fits; "-": cannot be cut so.
FITS = {
    (Q7, R7): {
        "A10": ("12/3.0‖26/6.5", "55/14‖69/17", "142/36‖156/39", "-"),
        "L4": ("12/3.0‖26/6.5", "55/14‖69/17", "142/36‖156/39", "-"),
        "L40S": ("57/14‖71/18", "146/36‖160/40", "326/82‖340/85", "-"),
        "A100": ("129/32‖143/36", "290/72‖304/76", "614/154‖628/157", "-"),
        "H20": ("162/41‖176/44", "357/89‖370/93", "748/187‖762/190", "-"),
    },
    ALL_32B: {
        "A10": ("no‖no", "no‖3.0/no(24k)", "7.6/1.9‖22/5.5", "46/11‖60/15"),
        "L4": ("no‖no", "no‖3.0/no(24k)", "7.6/1.9‖22/5.5", "46/11‖60/15"),
        "L40S": ("no‖3.3/no(26k)", "8.2/2.1‖23/5.7", "48/12‖62/16", "126/32‖141/35"),
        "A100": ("4.5/1.1‖19/4.8", "40/10‖54/14", "111/28‖125/31", "253/63‖267/67"),
        "H20": ("12/3.0‖26/6.6", "54/14‖69/17", "140/35‖154/39", "311/78‖325/81"),
    },
    (R70,): {
        "A10": ("no‖no", "no‖no", "no‖3.4/no(27k)", "8.5/2.1‖34/8.5"),
        "L4": ("no‖no", "no‖no", "no‖3.4/no(27k)", "8.5/2.1‖34/8.5"),
        "L40S": ("no‖no", "no‖3.8/no(31k)", "9.8/2.4‖35/8.8", "73/18‖98/25"),
        "A100": ("no‖no(7k)", "3.5/no(29k)‖29/7.3", "60/15‖86/21", "174/43‖199/50"),
        "H20": ("no‖6.7/1.7", "15/3.8‖41/10", "84/21‖109/27", "220/55‖246/61"),
    },
    (Q235,): {
        "A10": ("no‖no", "no‖no", "no‖no", "no‖no"),
        "L4": ("no‖no", "no‖no", "no‖no", "no‖no"),
        "L40S": ("no‖no", "no‖no", "no‖no", "no‖31/7.6"),
        "A100": ("no‖no", "no‖no", "no‖41/10", "42/11‖116/29"),
        "H20": ("no‖no", "no‖no", "no‖81/20", "82/21‖156/39"),
    },
}
CELLS = [
    (model, gpu, tp, side, cell.split("‖")[side])
    for models, gpus in FITS.items()
    for model in models
    for gpu, row in gpus.items()
    for tp, cell in zip((1, 2, 4, 8), row, strict=True)
    for side in (0, 1)
    if cell != "-"
]


def spec(name: str) -> ModelSpec:
    return MODELS[name].spec()


def blocks(model: ModelSpec, gpu: str, tp: int, quantization: str | None) -> int:
    memory, tokens, seqs = GPUS[gpu]
    need = sizing.Need(
        usable=int(memory * GIB * 0.92),
        weights=sizing.weights_bytes(model, dtype="bfloat16", quantization=quantization, tp=tp),
        activation=sizing.activation_bytes(model, dtype="bfloat16", batched_tokens=tokens, num_seqs=seqs, tp=tp),
        fixed=sizing.fixed_bytes(tp),
    )
    return sizing.kv_blocks(need.pool, sizing.kv_bytes_per_token(model, dtype="bfloat16", tp=tp), 16)


def agrees(printed: str, value: float) -> bool:
    """The value to the precision in which it was printed. A quarter of a unit of slack, because one row stands
    for four 32B models whose weights differ by a few MiB."""
    unit = 0.1 if "." in printed else 1.0
    return abs(value - float(printed)) <= unit * 0.75


@pytest.mark.parametrize("name", SHAPES)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    printed = SHAPES[name][0]
    digits = len(str(printed).split(".")[1])
    assert round(sizing.parameters(spec(name)) / 1e9, digits) == printed


@pytest.mark.parametrize("name", SHAPES)
def test_weights_and_kv_cache_agree_with_the_worked_table(name: str) -> None:
    _, bf16, fp8, kib, at_8k, at_32k, _ = SHAPES[name]
    model = spec(name)
    kv = sizing.kv_bytes_per_token(model, dtype="bfloat16")
    assert sizing.weights_bytes(model, dtype="bfloat16") / GIB == pytest.approx(bf16, abs=0.05)
    assert sizing.weights_bytes(model, dtype="bfloat16", quantization="fp8") / GIB == pytest.approx(fp8, abs=0.05)
    assert kv / 1024 == kib
    assert kv * 8192 / GIB == pytest.approx(at_8k, abs=0.006)
    assert kv * 32768 / GIB == pytest.approx(at_32k, abs=0.006)


@pytest.mark.parametrize("name", SHAPES)
def test_valid_tensor_parallel_sizes_agree_with_the_worked_table(name: str) -> None:
    assert sizing.valid_tp_sizes(spec(name), 16) == SHAPES[name][6]


def test_kv_heads_are_replicated_once_there_are_more_ranks_than_heads() -> None:
    model = spec(Q235)
    per_rank = [sizing.kv_bytes_per_token(model, dtype="bfloat16", tp=tp) // 1024 for tp in (1, 2, 4, 8)]
    assert per_rank == [188, 94, 47, 47]


@pytest.mark.parametrize(("name", "gpu", "tp", "side", "printed"), CELLS)
def test_concurrency_agrees_with_the_worked_table(name: str, gpu: str, tp: int, side: int, printed: str) -> None:
    found = blocks(spec(name), gpu, tp, "fp8" if side else None)
    for length, text in zip((8192, 32768), printed.split("/") if "/" in printed else [printed] * 2, strict=True):
        value = sizing.concurrency(found, length, 16)
        if text.startswith("no"):
            assert value < 1
        else:
            assert agrees(text, value), (length, value)
    if "(" in printed:
        longest = int(printed.split("(")[1].rstrip("k)"))
        assert found * 16 / 1024 == pytest.approx(longest, abs=1)


@pytest.mark.parametrize("length", [8192, 32768])
def test_small_models_on_one_a10_agree_with_the_worked_table(length: int) -> None:
    at_8k = {Q1: 76, SMOL: 111}
    for name, printed in at_8k.items():
        value = sizing.concurrency(blocks(spec(name), "A10", 1, None), length, 16)
        assert value == pytest.approx(printed * 8192 / length, rel=0.01)


def test_concurrency_agrees_with_what_vllm_logged_for_qwen3_0_6b() -> None:
    # vLLM pull request 21728: 18.83 GiB, 176,240 tokens, 21.51 requests of 8192; KV 112 KiB per token.
    tokens = sizing.kv_blocks(int(18.83 * GIB), 2 * 28 * 8 * 128 * 2, 16) * 16
    assert tokens == pytest.approx(176_240, rel=0.001)
    assert tokens / 8192 == pytest.approx(21.51, abs=0.02)


def test_a_7b_model_cannot_be_cut_into_eight_and_the_heads_are_the_reason() -> None:
    assert sizing.tp_problem(spec(Q7), 8) == "28 attention heads do not divide by 8"
    assert sizing.valid_tp_sizes(spec(Q7), 8)[-1] == 4


def test_block_fp8_columns_must_stay_whole_blocks() -> None:
    assert sizing.tp_problem(spec(Q1), 4) is None
    assert "fp8 blocks" in (sizing.tp_problem(spec(Q1), 4, quantization="fp8") or "")


def test_experts_are_shared_out_whole_where_their_columns_do_not_divide() -> None:
    model = spec(Q235)
    assert sizing.expert_sharded(model, 8, quantization="fp8")
    assert not sizing.expert_sharded(model, 8)
    assert sizing.tp_problem(model, 8, quantization="fp8") is None
