"""One decoder class for Llama, Qwen2, Qwen3, Qwen3-MoE and Mistral: a pre-norm transformer over a paged KV cache.

    x = embed(tokens)
    per layer:   x += o(attention(rope(qkv(norm(x)))))        attention reads and writes the paged cache
                 x += down(silu(gate(norm(x))) · up(norm(x)))  or the mixture of experts
    logits = head(norm(x))

What differs between the families is data (ModelSpec), not code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.model.checkpoint import Checkpoint
from runtime.model.rope import rope_table
from runtime.model_spec import ModelSpec, MoeSpec
from runtime.ops.batch import Batch
from runtime.ops.ops import Linear, Ops

Mlp = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one layer, ready to call."""

    input_norm: Tensor  # [H]
    qkv: Linear  # H → (N + 2K)·D
    qk_norms: tuple[Tensor, Tensor] | None  # [D], [D]
    o: Linear  # N·D → H
    mlp_norm: Tensor  # [H]
    mlp: Mlp


class Decoder:
    """Holds the weights; `forward` runs one packed step."""

    def __init__(
        self,
        spec: ModelSpec,
        ops: Ops,
        layers: list[Layer],
        *,
        embedding: Tensor,
        final_norm: Tensor,
        head: Linear,
        max_model_len: int,
    ) -> None:
        self.spec = spec
        self.ops = ops
        self.layers = layers
        self.embedding = embedding
        self.final_norm = final_norm
        self.head = head
        self.rope_table = rope_table(spec, max_model_len).to(embedding.device)
        self.scale = spec.head_dim**-0.5

    def forward(self, batch: Batch, caches: list[Tensor]) -> Tensor:
        """Logits [S, V] in float32 of the tokens in `batch.samples`.

        `caches` holds one tensor [2, blocks, block_size, K, D] per layer.
        """
        ops, eps = self.ops, self.spec.rms_eps
        residual = F.embedding(batch.tokens, self.embedding)
        x = ops.rms_norm(residual, self.layers[0].input_norm, eps)
        last = len(self.layers) - 1
        for index, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            query = ops.rope_write(layer.qkv(x), layer.qk_norms, eps, self.rope_table, cache, batch)
            x = layer.o(ops.attention(query, cache, batch, self.scale).flatten(1))
            if index == last:  # nobody reads the other tokens any more
                x, residual = x[batch.samples], residual[batch.samples]
            x, residual = ops.add_rms_norm(x, residual, layer.mlp_norm, eps)
            x = layer.mlp(x)
            following = self.final_norm if index == last else self.layers[index + 1].input_norm
            x, residual = ops.add_rms_norm(x, residual, following, eps)
        return self.head(x).float()


def load_decoder(
    spec: ModelSpec,
    checkpoint: Checkpoint,
    ops: Ops,
    *,
    device: torch.device,
    dtype: torch.dtype,
    max_model_len: int,
) -> Decoder:
    """Streams the checkpoint into a Decoder: beside the weights so far, memory holds one layer's newest matrix.

    Raises CheckpointError when a tensor is missing, has another shape, or has no place in the model.
    """
    take = _Taker(checkpoint, device, dtype)
    hidden, vocab = spec.hidden_size, spec.vocab_size
    embedding = take("model.embed_tokens.weight", vocab, hidden)
    layers = [_load_layer(spec, take, ops, f"model.layers.{i}.") for i in range(spec.num_layers)]
    final_norm = take("model.norm.weight", hidden)
    head = embedding if spec.tie_embeddings else take("lm_head.weight", vocab, hidden)
    decoder = Decoder(
        spec,
        ops,
        layers,
        embedding=embedding,
        final_norm=final_norm,
        head=ops.pack_linear(head, None),
        max_model_len=max_model_len,
    )
    checkpoint.close(ignore=("lm_head.weight",) if spec.tie_embeddings else ())
    return decoder


@dataclass(frozen=True, slots=True)
class _Taker:
    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype

    def __call__(self, name: str, *shape: int) -> Tensor:
        return self.checkpoint.take(name, shape, self.dtype).to(self.device)

    def stacked(self, names: list[str], rows: list[int], *tail: int) -> Tensor:
        """Several tensors in one, along the first dimension, read one at a time."""
        out = torch.empty(sum(rows), *tail, device=self.device, dtype=self.dtype)
        start = 0
        for name, count in zip(names, rows, strict=True):
            out[start : start + count] = self(name, count, *tail)
            start += count
        return out


def _load_layer(spec: ModelSpec, take: _Taker, ops: Ops, prefix: str) -> Layer:
    hidden = spec.hidden_size
    attn = prefix + "self_attn."
    parts = [attn + name for name in ("q_proj", "k_proj", "v_proj")]
    rows = [spec.q_size, spec.kv_size, spec.kv_size]
    qkv_bias = take.stacked([f"{p}.bias" for p in parts], rows) if spec.qkv_bias else None
    qk_norms = None
    if spec.qk_norm:
        qk_norms = (take(attn + "q_norm.weight", spec.head_dim), take(attn + "k_norm.weight", spec.head_dim))
    return Layer(
        input_norm=take(prefix + "input_layernorm.weight", hidden),
        qkv=ops.pack_linear(take.stacked([f"{p}.weight" for p in parts], rows, hidden), qkv_bias),
        qk_norms=qk_norms,
        o=ops.pack_linear(
            take(attn + "o_proj.weight", hidden, spec.q_size),
            take(attn + "o_proj.bias", hidden) if spec.o_bias else None,
        ),
        mlp_norm=take(prefix + "post_attention_layernorm.weight", hidden),
        mlp=_load_moe(spec, spec.moe, take, ops, prefix + "mlp.")
        if spec.moe
        else _load_mlp(spec, take, ops, prefix + "mlp."),
    )


def _load_mlp(spec: ModelSpec, take: _Taker, ops: Ops, prefix: str) -> Mlp:
    hidden, inner = spec.hidden_size, spec.intermediate_size
    parts = [prefix + "gate_proj", prefix + "up_proj"]
    gate_up = ops.pack_linear(
        take.stacked([f"{p}.weight" for p in parts], [inner, inner], hidden),
        take.stacked([f"{p}.bias" for p in parts], [inner, inner]) if spec.mlp_bias else None,
    )
    down = ops.pack_linear(
        take(prefix + "down_proj.weight", hidden, inner),
        take(prefix + "down_proj.bias", hidden) if spec.mlp_bias else None,
    )

    def mlp(x: Tensor) -> Tensor:
        return down(ops.silu_mul(gate_up(x)))

    return mlp


def _load_moe(spec: ModelSpec, moe: MoeSpec, take: _Taker, ops: Ops, prefix: str) -> Mlp:
    hidden, inner, count = spec.hidden_size, moe.intermediate_size, moe.num_experts
    router = take(prefix + "gate.weight", count, hidden)
    gate_up = torch.empty(count, 2 * inner, hidden, device=take.device, dtype=take.dtype)
    down = torch.empty(count, hidden, inner, device=take.device, dtype=take.dtype)
    for expert in range(count):
        part = f"{prefix}experts.{expert}."
        gate_up[expert, :inner] = take(part + "gate_proj.weight", inner, hidden)
        gate_up[expert, inner:] = take(part + "up_proj.weight", inner, hidden)
        down[expert] = take(part + "down_proj.weight", hidden, inner)

    def mlp(x: Tensor) -> Tensor:
        return ops.moe(x, router, gate_up, down, moe.top_k, moe.norm_topk_prob)

    return mlp
