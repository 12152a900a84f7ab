"""Small random checkpoints of every family, written by transformers as a user's would be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCAB = 256
_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
}

CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_SHAPE),
    "llama3-rope": lambda: LlamaConfig(
        **_SHAPE,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "qwen2": lambda: Qwen2Config(**_SHAPE),
    "qwen3": lambda: Qwen3Config(**_SHAPE, head_dim=16, tie_word_embeddings=True),
    "qwen3-yarn": lambda: Qwen3Config(
        **_SHAPE,
        head_dim=16,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    ),
    "qwen3-moe": lambda: Qwen3MoeConfig(
        **_SHAPE, head_dim=16, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=48, norm_topk_prob=True
    ),
    "mistral": lambda: MistralConfig(**_SHAPE, head_dim=16, sliding_window=None),
}


def save(name: str, folder: Path, *, shard: str = "5GB") -> PreTrainedModel:
    """Writes the checkpoint `name` into `folder`; returns transformers' own model of it, in float32."""
    return save_config(CONFIGS[name](), folder, shard=shard)


def save_config(config: PretrainedConfig, folder: Path, *, shard: str = "5GB") -> PreTrainedModel:
    """As `save`, of any shape."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        # Wide enough that the greedy token is clear, and norms and biases that are not the identity.
        mean = 1.0 if parameter.dim() == 1 else 0.0
        torch.nn.init.normal_(parameter, mean, 0.2 if parameter.dim() == 1 else 0.15)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def greedy(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """The `count` tokens that transformers' generate adds."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return list(out[0, len(prompt) :].tolist())
