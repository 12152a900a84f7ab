"""The frozen shape of a decoder: read from a Hugging Face `config.json`, torch-free.

One `ModelSpec` covers Llama, Qwen2, Qwen3, Qwen3-MoE and Mistral. What it cannot express is refused
here, by name of the field, before a byte of weights is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Family = Literal["llama", "qwen2", "qwen3", "qwen3_moe", "mistral"]

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "MistralForCausalLM": "mistral",
}


class UnsupportedModelError(ValueError):
    """A `config.json` asks for something that the decoder does not have.

    `field` is the dotted name in config.json that makes it so.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"config.json: {field}: {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Rotary scaling. `llama3` and `yarn` as in their papers' reference code, `linear` divides positions."""

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_max_position: int
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn; None = 0.1·ln(factor) + 1


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """Sparse MLP of every layer: softmax router, top-k of `num_experts`."""

    num_experts: int
    top_k: int
    intermediate_size: int
    norm_topk_prob: bool


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shape of a decoder-only transformer. Sizes in elements, `max_position` in tokens."""

    family: Family
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position: int
    rms_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tie_embeddings: bool
    qkv_bias: bool  # Qwen2: bias on q, k, v only
    o_bias: bool  # Llama with attention_bias: on o too
    mlp_bias: bool
    qk_norm: bool  # Qwen3: RMSNorm over head_dim of q and k
    moe: MoeSpec | None
    checkpoint_dtype: str  # "bfloat16", "float16", "float32"
    quantization: str | None  # quant_method of the checkpoint; the engine reads "fp8"
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        *,
        generation_config: Mapping[str, Any] | None = None,
        rope_scaling: Mapping[str, Any] | None = None,
    ) -> ModelSpec:
        """Reads a parsed `config.json`.

        `rope_scaling` (the spec's option) replaces the checkpoint's own. Raises UnsupportedModelError.
        """
        family = _family(config)
        heads = _int(config, "num_attention_heads")
        hidden = _int(config, "hidden_size")
        head_dim = int(config.get("head_dim") or hidden // heads)
        rope = _rope_parameters(config)
        scaling_source = rope_scaling if rope_scaling is not None else rope
        max_position = _int(config, "max_position_embeddings")
        scaling = _rope_scaling(scaling_source, max_position)
        if rope_scaling is not None and scaling is not None:
            max_position = int(scaling.original_max_position * scaling.factor)
        _refuse_sliding_window(config, max_position)
        if (act := config.get("hidden_act", "silu")) not in ("silu", "swish"):
            raise UnsupportedModelError("hidden_act", f"{act!r} is not supported; only silu")
        if config.get("layer_types") and set(config["layer_types"]) != {"full_attention"}:
            raise UnsupportedModelError("layer_types", "only full_attention layers are supported")
        if (partial := rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))) != 1.0:
            raise UnsupportedModelError("partial_rotary_factor", f"{partial} is not supported; only 1.0")
        attention_bias = bool(config.get("attention_bias", False))
        eos = (generation_config or {}).get("eos_token_id", config.get("eos_token_id"))
        dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
        return cls(
            family=family,
            hidden_size=hidden,
            num_layers=_int(config, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=head_dim,
            intermediate_size=_int(config, "intermediate_size"),
            vocab_size=_int(config, "vocab_size"),
            max_position=max_position,
            rms_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
            rope_scaling=scaling,
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=family == "qwen2" or attention_bias,
            o_bias=attention_bias and family != "qwen2",
            mlp_bias=bool(config.get("mlp_bias", False)),
            qk_norm=family in ("qwen3", "qwen3_moe"),
            moe=_moe(config) if family == "qwen3_moe" else None,
            checkpoint_dtype=dtype,
            quantization=_quantization(config),
            bos_token_id=config.get("bos_token_id"),
            eos_token_ids=_ids(eos),
        )


def _family(config: Mapping[str, Any]) -> Family:
    names = config.get("architectures") or []
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]
    known = ", ".join(FAMILIES)
    raise UnsupportedModelError("architectures", f"{names} is not supported; supported: {known}")


def _int(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise UnsupportedModelError(key, f"must be a positive integer, is {value!r}")
    return value


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def _rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 4 writes `rope_scaling` + `rope_theta`, transformers 5 one `rope_parameters`."""
    return dict(config.get("rope_parameters") or config.get("rope_scaling") or {})


def _rope_scaling(rope: Mapping[str, Any], max_position: int) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise UnsupportedModelError("rope_scaling.rope_type", f"{kind!r} is not one of linear, llama3, yarn")
    allowed = {
        "rope_type", "type", "factor", "original_max_position_embeddings", "low_freq_factor",
        "high_freq_factor", "beta_fast", "beta_slow", "attention_factor", "rope_theta",
        "partial_rotary_factor",
    }  # fmt: skip
    if unknown := sorted(set(rope) - allowed):
        raise UnsupportedModelError(f"rope_scaling.{unknown[0]}", "is not supported")
    if "factor" not in rope:
        raise UnsupportedModelError("rope_scaling.factor", "is missing")
    factor = float(rope["factor"])
    if factor < 1.0:
        raise UnsupportedModelError("rope_scaling.factor", f"must be at least 1, is {factor}")
    attention_factor = rope.get("attention_factor")
    return RopeScaling(
        kind=kind,
        factor=factor,
        original_max_position=int(rope.get("original_max_position_embeddings") or max_position),
        low_freq_factor=float(rope.get("low_freq_factor", 1.0)),
        high_freq_factor=float(rope.get("high_freq_factor", 4.0)),
        beta_fast=float(rope.get("beta_fast") or 32.0),
        beta_slow=float(rope.get("beta_slow") or 1.0),
        attention_factor=None if attention_factor is None else float(attention_factor),
    )


def _refuse_sliding_window(config: Mapping[str, Any], max_position: int) -> None:
    window = config.get("sliding_window")
    if window is None or config.get("use_sliding_window") is False or window >= max_position:
        return
    raise UnsupportedModelError("sliding_window", f"a window of {window} tokens is not supported")


def _moe(config: Mapping[str, Any]) -> MoeSpec:
    if config.get("mlp_only_layers"):
        raise UnsupportedModelError("mlp_only_layers", "dense layers among sparse ones are not supported")
    if config.get("decoder_sparse_step", 1) != 1:
        raise UnsupportedModelError("decoder_sparse_step", "only 1 is supported")
    return MoeSpec(
        # transformers 5 writes num_local_experts, the published checkpoints num_experts
        num_experts=_int(config, "num_experts" if "num_experts" in config else "num_local_experts"),
        top_k=_int(config, "num_experts_per_tok"),
        intermediate_size=_int(config, "moe_intermediate_size"),
        norm_topk_prob=bool(config.get("norm_topk_prob", False)),
    )


# What may stand in an fp8 checkpoint's quantization_config, and the values that are read here; None = any. Which
# matrices stay in 16 bits is seen from the tensors themselves.
FP8_OPTIONS: dict[str, tuple[object, ...] | None] = {
    "quant_method": ("fp8",),
    "fmt": ("e4m3",),
    "weight_block_size": ([128, 128],),  # without it each tensor has one scale
    "activation_scheme": ("dynamic", "static"),
    "scale_fmt": ("float",),
    "expert_dtype": ("fp8",),
    "dequantize": (False,),
    "modules_to_not_convert": None,
    "ignored_layers": None,
}


def _quantization(config: Mapping[str, Any]) -> str | None:
    """The quant_method. Raises UnsupportedModelError for an fp8 checkpoint of another kind than those known here."""
    quant = config.get("quantization_config")
    if not quant:
        return None
    method = str(quant.get("quant_method", "unknown"))
    if method == "fp8":
        for key, value in quant.items():
            valid = FP8_OPTIONS.get(key, ())
            if value is not None and valid is not None and value not in valid:
                known = f"only {' or '.join(map(str, valid))}" if valid else "leave it out"
                raise UnsupportedModelError(f"quantization_config.{key}", f"{value!r} is not supported ({known})")
    return method
