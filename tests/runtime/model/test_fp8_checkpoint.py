"""A checkpoint in fp8 says what the numbers that it stands for say; one that is not what it claims is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from runtime import sizing
from runtime.engine.load import load_runner, read_release
from runtime.engine.runner import Runner
from runtime.engine.scheduler import Row
from runtime.engine.sequence import Sequence
from runtime.ipc import Sampling
from runtime.model.checkpoint import Checkpoint, CheckpointError, Columns, Part, Rows, read_model_spec
from runtime.model.decoder import load_decoder
from runtime.model.group import Group
from runtime.model.matrix import Matrices, Piece
from runtime.model_spec import ModelSpec, UnsupportedModelError
from runtime.ops.fp8 import Fp8Weight, Weight, dense, quantize
from runtime.ops.gpu import gpu_ops
from runtime.ops.ops import REFERENCE, Experts, Linear, Ops, as_is, choose
from tests.lab import fp8_checkpoints as lab
from tests.runtime.engine.engine_process import write_release
from tests.runtime.ops.conftest import refuse_interpreter

CPU = torch.device("cpu")
PROMPT = [(7 * i + 3) % lab.VOCAB for i in range(40)]
KINDS = {
    "qwen3 in blocks": (lab.qwen3, True),
    "qwen3-moe in blocks": (lab.qwen3_moe, True),
    "llama by tensor": (lab.llama, False),
}


@torch.inference_mode()
def logits(folder: Path, ops: Ops, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """After the prompt, [1, V]."""
    spec = read_model_spec(folder)
    model = load_decoder(spec, Checkpoint(folder), ops, device=device, dtype=dtype, max_model_len=64)
    return logits_of(Runner(model, device=device, dtype=dtype, block_size=16))


@torch.inference_mode()
def logits_of(runner: Runner) -> torch.Tensor:
    runner.allocate(5)
    request = Sequence("", PROMPT, Sampling(1))
    request.blocks = [1, 2, 3]
    return runner.logits([Row(request, 0, len(PROMPT), samples=True)])


def agreement(one: torch.Tensor, other: torch.Tensor) -> float:
    """The cosine between logits."""
    return float(torch.cosine_similarity(one.flatten().float().cpu(), other.flatten().float().cpu(), dim=0))


def matrices(folder: Path) -> Matrices:
    return Matrices(Checkpoint(folder), CPU, torch.float32, hold=as_is)


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blocks")
    lab.save(lab.qwen3(), folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_bit_for_bit_those_of_the_unpacked_checkpoint(kind: str, tmp_path: Path) -> None:
    config, in_blocks = KINDS[kind]
    lab.save(config(), tmp_path, blocks=in_blocks)
    for ops in (REFERENCE, choose(CPU, torch.float32)):
        assert torch.equal(logits(tmp_path / "fp8", ops), logits(tmp_path / "float32", ops))


@pytest.mark.parametrize("kind", list(KINDS)[:2])
def test_what_is_quantized_at_load_says_what_a_checkpoint_quantized_before_says(kind: str, tmp_path: Path) -> None:
    lab.save(KINDS[kind][0](), tmp_path)
    quantizing = replace(REFERENCE, hold=quantize)  # embedding, head and router stay as they are, here and there
    assert torch.equal(logits(tmp_path / "float32", quantizing), logits(tmp_path / "fp8", REFERENCE))


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_cpu_unpacks_it_and_may_quantize_it_anew(blocks: Path, tmp_path: Path, quantization: str | None) -> None:
    release = read_release(write_release(tmp_path / "r1", blocks / "fp8", quantization=quantization))
    found = logits_of(load_runner(release, Group(), lambda share: None))
    assert agreement(found, logits(blocks / "float32", REFERENCE)) > (0.99 if quantization else 0.999999)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_that_keep_weights_in_fp8_say_the_same(kind: str, tmp_path: Path) -> None:
    config, in_blocks = KINDS[kind]
    lab.save(config(), tmp_path, blocks=in_blocks)
    ops = gpu_ops(REFERENCE, torch.float32, "w8a16")
    want = logits(tmp_path / "float32", REFERENCE)
    torch.testing.assert_close(logits(tmp_path / "fp8", ops), want, atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantization", [None, "fp8"])
def test_on_a_gpu_they_differ_by_rounding_only(kind: str, quantization: str | None, tmp_path: Path) -> None:
    refuse_interpreter("cuda")
    config, in_blocks = KINDS[kind]
    lab.save(config(), tmp_path, blocks=in_blocks)
    gpu = torch.device("cuda")
    found = logits(tmp_path / "fp8", choose(gpu, torch.bfloat16, quantization), gpu, torch.bfloat16)
    assert agreement(found, logits(tmp_path / "float32", REFERENCE)) > 0.95


def test_logits_are_those_of_transformers(blocks: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(blocks / "float32", dtype=torch.float32)
    with torch.inference_mode():
        expected = model(torch.tensor([PROMPT])).logits[0, -1:]
    torch.testing.assert_close(logits(blocks / "fp8", REFERENCE), expected, atol=1e-4, rtol=1e-4)


def test_a_module_that_is_not_converted_is_used_as_it_is(tmp_path: Path) -> None:
    lab.save(lab.qwen3(), tmp_path, skip="model.layers.0.self_attn.o_proj")
    assert (
        load_file(tmp_path / "fp8" / "model.safetensors")["model.layers.0.self_attn.o_proj.weight"].dtype.itemsize == 4
    )
    assert torch.equal(logits(tmp_path / "fp8", REFERENCE), logits(tmp_path / "float32", REFERENCE))


@pytest.mark.parametrize(
    ("name", "shape", "parts"),
    [
        ("self_attn.q_proj", (256, 192), [Rows(range(128)), Rows(range(128, 256))]),
        ("mlp.down_proj", (192, 256), [Columns(range(128)), Columns(range(128, 256))]),
        ("mlp.gate_proj", (256, 192), [Columns(range(128)), Columns(range(128, 192))]),
    ],
)
def test_the_shares_of_ranks_are_the_whole(blocks: Path, name: str, shape: tuple[int, int], parts: list[Part]) -> None:
    name = f"model.layers.1.{name}"
    whole = load_file(blocks / "float32" / "model.safetensors")[f"{name}.weight"]
    shares = [dense(matrices(blocks / "fp8").read([Piece(name, shape, part)]), torch.float32) for part in parts]
    assert torch.equal(torch.cat(shares, dim=0 if isinstance(parts[0], Rows) else 1), whole)


def test_what_is_kept_in_fp8_takes_one_byte_a_weight(blocks: Path) -> None:
    parts = [("q_proj", 256), ("k_proj", 128), ("v_proj", 128)]
    pieces = [Piece(f"model.layers.0.self_attn.{name}", (rows, 192), Rows(range(rows))) for name, rows in parts]
    weight = matrices(blocks / "fp8").read(pieces)
    assert isinstance(weight, Fp8Weight)
    assert (weight.data.shape, weight.data.dtype.itemsize) == ((512, 192), 1)
    assert (weight.scale.shape, weight.block) == ((4, 2), (128, 128))


def test_its_layers_take_the_bytes_that_sizing_says(tmp_path: Path) -> None:
    lab.save(lab.qwen3_moe_for_ranks(), tmp_path)
    held: list[int] = []

    def count(*weights: Weight) -> None:
        held.extend(w.data.nbytes + w.scale.nbytes for w in weights if isinstance(w, Fp8Weight))

    def pack_linear(weight: Weight, bias: torch.Tensor | None) -> Linear:
        count(weight)
        return REFERENCE.pack_linear(weight, bias)

    def pack_experts(gate_up: Weight, down: Weight, first: int) -> Experts:
        count(gate_up, down)
        return REFERENCE.pack_experts(gate_up, down, first)

    logits(tmp_path / "fp8", replace(REFERENCE, pack_linear=pack_linear, pack_experts=pack_experts))
    spec = read_model_spec(tmp_path / "fp8")
    layers = spec.num_layers * (sum(sizing.attention_elements(spec)) + sizing.mlp_elements(spec))
    assert sum(held) == layers * sizing.LINEAR_BYTES["fp8"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"weight_block_size": [64, 64]}, "weight_block_size"),
        ({"fmt": "e5m2"}, "fmt"),
        ({"scale_fmt": "ue8m0"}, "scale_fmt"),
        ({"activation_scheme": "odd"}, "activation_scheme"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
    ],
)
def test_another_kind_of_fp8_is_refused_by_the_field(blocks: Path, change: dict[str, Any], field: str) -> None:
    config = json.loads((blocks / "fp8" / "config.json").read_text())
    config["quantization_config"] |= change
    with pytest.raises(UnsupportedModelError) as caught:
        ModelSpec.from_config(config)
    assert caught.value.field == f"quantization_config.{field}"


IN_BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
PUBLISHED = {
    "Qwen3": IN_BLOCKS | {"fmt": "e4m3"},
    "AutoFP8": {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
    "transformers 5": IN_BLOCKS
    | {"dequantize": False, "modules_to_not_convert": ["lm_head"], "modules_to_convert": None, "scale_fmt": "float"},
}


@pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED)
def test_the_forms_that_are_published_are_read(blocks: Path, published: dict[str, Any]) -> None:
    config = json.loads((blocks / "fp8" / "config.json").read_text())
    assert ModelSpec.from_config(config | {"quantization_config": published}).quantization == "fp8"


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors"])
def test_another_quantization_is_refused_by_name(blocks: Path, tmp_path: Path, method: str) -> None:
    config = json.loads((blocks / "fp8" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))
    with pytest.raises(UnsupportedModelError, match=f"{method} is not supported; only fp8"):
        read_release(write_release(tmp_path / "r1", tmp_path))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model.layers.0.self_attn.q_proj.weight_scale_inv": None}, r"q_proj\.weight_scale is missing"),
        ({"model.layers.0.self_attn.k_proj.weight": torch.ones(128, 192)}, r"k_proj\.weight has dtype F32, where fp8"),
        ({"model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(3, 3)}, r"up_proj.* has shape \[3, 3\]"),
        ({"model.norm.weight": torch.ones(192).to(torch.float8_e4m3fn)}, "norm.weight has dtype F8_E4M3"),
    ],
)
def test_tensors_that_are_not_what_they_should_be_are_named(
    blocks: Path, tmp_path: Path, change: dict[str, torch.Tensor | None], reason: str
) -> None:
    tensors: dict[str, torch.Tensor | None] = {**load_file(blocks / "fp8" / "model.safetensors"), **change}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((blocks / "fp8" / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=reason):
        logits(tmp_path, REFERENCE)


def test_pieces_that_do_not_meet_at_whole_blocks_are_refused(blocks: Path) -> None:
    name = "model.layers.0.self_attn.q_proj"
    ragged, whole = Piece("model.layers.0.mlp.down_proj", (192, 256), Rows(range(192))), Rows(range(256))
    with pytest.raises(CheckpointError, match=r"down_proj \(192\).* not whole fp8 blocks of 128"):
        matrices(blocks / "fp8").read([ragged, ragged])
    with pytest.raises(CheckpointError, match="0 to 64 are not whole fp8 blocks of 128"):
        matrices(blocks / "fp8").read([Piece(name, (256, 192), Rows(range(64)))])
    assert len(matrices(blocks / "fp8").read([Piece(name, (256, 192), whole)])) == 256
