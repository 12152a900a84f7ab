"""Models of real shapes with random weights: speed and memory depend on the shape, not on what the weights say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from runtime.model.checkpoint import Checkpoint, Columns, Part, Rows
from runtime.model_spec import ModelSpec

SPREAD = 0.02  # standard deviation of a weight: as transformers initializes these families
Config = dict[str, str | int | float | bool | list[str]]


@dataclass(frozen=True, slots=True)
class Shape:
    """A model as its `config.json` describes it. `quantization` is the spec's option."""

    name: str
    config: Config
    quantization: str | None = None

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec.from_config(self.config)


_QWEN2_7B: Config = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
_QWEN3_8B: Config = {
    **_QWEN2_7B,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}
_QWEN3_MOE: Config = {
    **_QWEN3_8B,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_key_value_heads": 4,
    "num_hidden_layers": 12,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
}
_TINY: Config = {
    **_QWEN3_8B,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
}
_TINY_MOE: Config = {
    **_TINY,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "norm_topk_prob": True,
}

SHAPES = (
    Shape("Qwen2.5-7B", _QWEN2_7B),
    Shape("Qwen3-8B", _QWEN3_8B),
    Shape("Qwen3-8B in fp8", _QWEN3_8B, quantization="fp8"),
    Shape("Qwen3-30B-A3B, 12 of 48 layers", _QWEN3_MOE),
)
TINY_SHAPES = (Shape("tiny", _TINY), Shape("tiny MoE", _TINY_MOE))


def shape_named(name: str) -> Shape:
    """Raises KeyError."""
    return {shape.name: shape for shape in (*SHAPES, *TINY_SHAPES)}[name]


class RandomWeights(Checkpoint):
    """A checkpoint that has every tensor that it is asked for, unquantized, made on the device that will use it."""

    def __init__(self, device: torch.device) -> None:
        self.folder = Path("random weights")
        self.on_bytes = None
        self._device = device
        self._generator = torch.Generator(device).manual_seed(0)

    def __contains__(self, name: str) -> bool:
        return not name.endswith(("_scale", "_scale_inv"))

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, part: Part | None = None) -> Tensor:
        match part:
            case Rows(span):
                shape = (len(span), *shape[1:])
            case Columns(span):
                shape = (shape[0], len(span))
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=dtype, device=self._device)
        return torch.empty(shape, dtype=dtype, device=self._device).normal_(0, SPREAD, generator=self._generator)

    def is_fp8(self, name: str) -> bool:
        return False

    def leave(self, name: str) -> None:
        """Another rank's."""

    def close(self, *, ignore: tuple[str, ...] = ()) -> None:
        """Nothing was opened."""
