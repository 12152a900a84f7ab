"""A checkpoint that is not what its config.json says is refused, by name of what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.model.checkpoint import Checkpoint, CheckpointError, read_model_spec
from runtime.model.decoder import load_decoder
from runtime.model_spec import ModelSpec, UnsupportedModelError
from runtime.ops.ops import REFERENCE
from tests.lab import checkpoints


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoints.save("qwen2", tmp_path)
    return tmp_path


def load(folder: Path) -> None:
    load_decoder(
        read_model_spec(folder),
        Checkpoint(folder),
        REFERENCE,
        device=torch.device("cpu"),
        dtype=torch.float32,
        max_model_len=64,
    )


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    path = folder / "model.safetensors"
    tensors: dict[str, torch.Tensor | None] = {**load_file(path), **change}
    save_file({name: t for name, t in tensors.items() if t is not None}, path)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    change_tensors(folder, {"model.layers.1.self_attn.k_proj.bias": None})
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.k_proj\.bias is missing"):
        load(folder)


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    change_tensors(folder, {"model.norm.weight": torch.ones(3)})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has shape \[3\], config\.json says \[64\]"):
        load(folder)


def test_a_tensor_that_has_no_place_is_named(folder: Path) -> None:
    change_tensors(folder, {"model.layers.0.adapter.weight": torch.ones(3)})
    with pytest.raises(CheckpointError, match=r"no place for: model\.layers\.0\.adapter\.weight"):
        load(folder)


def test_integer_weights_are_refused(folder: Path) -> None:
    change_tensors(folder, {"model.norm.weight": torch.ones(64, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match="dtype I8"):
        load(folder)


def test_a_folder_without_weights_says_which_files_it_wants(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        Checkpoint(tmp_path)


def test_a_truncated_file_is_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        Checkpoint(folder)


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    checkpoints.save("llama", tmp_path, shard="100KB")
    gone = sorted(tmp_path.glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(CheckpointError, match=gone.name):
        Checkpoint(tmp_path)


def test_an_index_cannot_reach_outside_its_folder(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret"}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        Checkpoint(folder)


def test_a_broken_config_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        read_model_spec(folder)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"sliding_window": 128, "use_sliding_window": True}, "sliding_window"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "rope_scaling.rope_type"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_scaling.factor"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}, "rope_scaling.mscale"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"hidden_size": "64"}, "hidden_size"),
    ],
)
def test_what_the_decoder_cannot_do_is_refused_by_the_field(folder: Path, change: dict[str, Any], field: str) -> None:
    edit(folder, **change)
    with pytest.raises(UnsupportedModelError) as caught:
        read_model_spec(folder)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("change", "field"),
    [({"mlp_only_layers": [0]}, "mlp_only_layers"), ({"decoder_sparse_step": 2}, "decoder_sparse_step")],
)
def test_a_mixture_with_dense_layers_is_refused(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    checkpoints.save("qwen3-moe", tmp_path)
    edit(tmp_path, **change)
    with pytest.raises(UnsupportedModelError) as caught:
        read_model_spec(tmp_path)
    assert caught.value.field == field


def test_a_sliding_window_that_is_switched_off_is_fine(folder: Path) -> None:
    edit(folder, sliding_window=128, use_sliding_window=False)
    assert read_model_spec(folder).family == "qwen2"


def test_the_specs_rope_scaling_replaces_the_checkpoints_and_stretches_the_limit(folder: Path) -> None:
    spec = read_model_spec(folder, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512})
    assert spec.max_position == 2048


def test_generation_config_has_the_last_word_on_the_end_of_sequence() -> None:
    config = json.loads(checkpoints.CONFIGS["llama"]().to_json_string(use_diff=False))
    config |= {"architectures": ["LlamaForCausalLM"], "eos_token_id": 1}
    spec = ModelSpec.from_config(config, generation_config={"eos_token_id": [5, 6]})
    assert spec.eos_token_ids == (5, 6)
