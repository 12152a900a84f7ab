"""Small checkpoints in fp8, written by hand beside the same numbers in float32."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, PretrainedConfig, Qwen3Config, Qwen3MoeConfig

from tests.lab import checkpoints

VOCAB = 256
_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 192,  # one block and a half
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
}
BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
TENSORS = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}


def qwen3() -> PretrainedConfig:
    return Qwen3Config(**_SHAPE, tie_word_embeddings=True)


def qwen3_moe() -> PretrainedConfig:
    return Qwen3MoeConfig(
        **_SHAPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128, norm_topk_prob=True
    )


def qwen3_moe_for_ranks() -> PretrainedConfig:
    """Heads that two ranks can share: each is a block wide."""
    shape = {**_SHAPE, "hidden_size": 256, "head_dim": 128}
    return Qwen3MoeConfig(**shape, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128, norm_topk_prob=True)


def llama() -> PretrainedConfig:
    return LlamaConfig(**_SHAPE)


def save(config: PretrainedConfig, folder: Path, *, blocks: bool = True, skip: str = "-") -> None:
    """Writes folder/fp8, quantized in blocks or by tensor but for modules named `skip`, and folder/float32 with the
    numbers that it stands for."""
    checkpoints.save_config(config, folder / "float32")
    (folder / "fp8").mkdir()
    stored: dict[str, torch.Tensor] = {}
    plain = load_file(folder / "float32" / "model.safetensors")
    for name, weight in list(plain.items()):
        if not name.endswith("_proj.weight") or skip in name:
            stored[name] = weight
            continue
        rows, columns = weight.shape
        side = 128 if blocks else max(rows, columns)
        scale = torch.empty(-(-rows // side), -(-columns // side))
        data = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                block = (slice(i * side, (i + 1) * side), slice(j * side, (j + 1) * side))
                scale[i, j] = weight[block].abs().max() / 448
                data[block] = (weight[block] / scale[i, j]).to(torch.float8_e4m3fn)
                plain[name][block] = data[block].float() * scale[i, j]
        stored[name] = data
        if blocks:
            stored[f"{name}_scale_inv"] = scale
        else:
            stored[f"{name}_scale"] = scale.view(())
            stored[name.replace(".weight", ".input_scale")] = torch.tensor([1.0])
    save_file(plain, folder / "float32" / "model.safetensors", {"format": "pt"})
    save_file(stored, folder / "fp8" / "model.safetensors", {"format": "pt"})
    values = json.loads((folder / "float32" / "config.json").read_text())
    values["quantization_config"] = {**(BLOCKS if blocks else TENSORS), "modules_to_not_convert": [skip]}
    (folder / "fp8" / "config.json").write_text(json.dumps(values))
