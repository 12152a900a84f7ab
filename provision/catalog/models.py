"""The ten models that this project is made for, with the shape numbers of their `config.json`.

They have the same names on Hugging Face and on ModelScope.

Each shape reads like the model's own config.json, so that one reader (`ModelSpec.from_config`) serves the
catalog and the hub alike. Sources: the models' published configurations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from runtime.model_spec import ModelSpec

ConfigValue = str | int | float | bool | None | list[str] | list[int] | dict[str, str | int | float]


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """`config` holds what `ModelSpec.from_config` reads; `file_bytes` is the size of the weights to fetch."""

    id: str
    licence: str
    config: Mapping[str, ConfigValue]

    def spec(self, rope_scaling: Mapping[str, str | int | float] | None = None) -> ModelSpec:
        return ModelSpec.from_config(self.config, rope_scaling=rope_scaling)


_QWEN2: dict[str, ConfigValue] = {
    "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0, "max_position_embeddings": 32768, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "bos_token_id": 151643, "eos_token_id": [151645, 151643],
    "use_sliding_window": False,
}  # fmt: skip
_QWEN2_7B: dict[str, ConfigValue] = {
    "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    "intermediate_size": 18944, "vocab_size": 152064,
}  # fmt: skip
_QWEN2_32B: dict[str, ConfigValue] = {
    "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 40, "num_key_value_heads": 8,
    "intermediate_size": 27648, "vocab_size": 152064,
}  # fmt: skip
_QWEN3: dict[str, ConfigValue] = {
    "hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "max_position_embeddings": 40960,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 151643,
    "eos_token_id": [151645, 151643], "attention_bias": False, "head_dim": 128, "use_sliding_window": False,
}  # fmt: skip
_R1: dict[str, ConfigValue] = {
    "bos_token_id": 151646,
    "eos_token_id": 151643,
    "max_position_embeddings": 131072,
}

_CONFIGS: tuple[tuple[str, str, dict[str, ConfigValue]], ...] = (
    (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "Apache-2.0",
        {
            "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-05,
            "rope_theta": 100000, "max_position_embeddings": 8192, "tie_word_embeddings": True,
            "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "attention_bias": False,
            "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
            "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152,
        },
    ),
    (
        "Qwen/Qwen2.5-1.5B-Instruct",
        "Apache-2.0",
        {
            **_QWEN2, "tie_word_embeddings": True, "hidden_size": 1536, "num_hidden_layers": 28,
            "num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960,
            "vocab_size": 151936,
        },
    ),
    ("Qwen/Qwen2.5-7B-Instruct", "Apache-2.0", {**_QWEN2, **_QWEN2_7B}),
    (
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        "MIT",
        {**_QWEN2, **_QWEN2_7B, **_R1, "rope_theta": 10000},
    ),
    ("Qwen/Qwen2.5-32B-Instruct", "Apache-2.0", {**_QWEN2, **_QWEN2_32B}),
    (
        "Qwen/QwQ-32B",
        "Apache-2.0",
        {**_QWEN2, **_QWEN2_32B, "rms_norm_eps": 1e-05, "max_position_embeddings": 40960},
    ),
    (
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
        "MIT",
        {**_QWEN2, **_QWEN2_32B, **_R1, "rms_norm_eps": 1e-05},
    ),
    (
        "Qwen/Qwen3-32B",
        "Apache-2.0",
        {
            **_QWEN3, "architectures": ["Qwen3ForCausalLM"], "hidden_size": 5120, "num_hidden_layers": 64,
            "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 25600,
            "vocab_size": 151936,
        },
    ),
    (
        "deepseek-ai/DeepSeek-R1-Distill-Llama-70B",
        "MIT",
        {
            "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-05,
            "rope_theta": 500000.0, "max_position_embeddings": 131072, "tie_word_embeddings": False,
            "torch_dtype": "bfloat16", "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
            "attention_bias": False, "mlp_bias": False, "head_dim": 128, "hidden_size": 8192,
            "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
            "intermediate_size": 28672, "vocab_size": 128256,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
    (
        "Qwen/Qwen3-235B-A22B",
        "Apache-2.0",
        {
            **_QWEN3, "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 4096,
            "num_hidden_layers": 94, "num_attention_heads": 64, "num_key_value_heads": 4,
            "intermediate_size": 12288, "vocab_size": 151936, "num_experts": 128,
            "num_experts_per_tok": 8, "moe_intermediate_size": 1536, "norm_topk_prob": True,
            "decoder_sparse_step": 1, "mlp_only_layers": [],
        },
    ),
)  # fmt: skip

MODELS: Mapping[str, CatalogModel] = MappingProxyType(
    {name: CatalogModel(name, licence, config) for name, licence, config in _CONFIGS}
)
