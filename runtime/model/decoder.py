"""One decoder class for Llama, Qwen2, Qwen3, Qwen3-MoE and Mistral: a pre-norm transformer over a paged KV cache.

    x = embed(tokens)
    per layer:   x += o(attention(rope(qkv(norm(x)))))        attention reads and writes the paged cache
                 x += down(silu(gate(norm(x))) · up(norm(x)))  or the mixture of experts
    logits = head(norm(x))

What differs between the families is data (ModelSpec), not code. With several ranks, each holds its share of every
matrix (runtime.model.group); what is called here is then the shared layer, sums included.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.model.checkpoint import Checkpoint, Columns, Part, Rows
from runtime.model.group import ALONE, Group, Share
from runtime.model.matrix import Matrices, Piece
from runtime.model.rope import rope_table
from runtime.model_spec import ModelSpec, MoeSpec
from runtime.ops.batch import Batch
from runtime.ops.ops import Block, DenseMlp, Layer, Linear, Mlp, Ops, as_is, in_bfloat16, not_fused


class Decoder:
    """Holds the weights; `forward` runs one packed step."""

    def __init__(
        self,
        spec: ModelSpec,
        ops: Ops,
        layers: list[Layer],
        *,
        embed: Linear,
        final_norm: Tensor,
        head: Linear,
        num_kv_heads: int,
        max_model_len: int,
    ) -> None:
        self.spec = spec
        self.ops = ops
        self.layers = layers
        self.embed = embed
        self.final_norm = final_norm
        self.head = head
        self.num_kv_heads = num_kv_heads  # of this rank
        self.rope_table = rope_table(spec, max_model_len).to(final_norm.device)
        self.scale = spec.head_dim**-0.5
        following = [*(layer.input_norm for layer in layers[1:]), final_norm]
        self.blocks = [self._make_block(layer, norm) for layer, norm in zip(layers, following, strict=True)]

    def forward(self, batch: Batch, caches: list[Tensor]) -> Tensor:
        """Logits [S, V] in float32 of the tokens in `batch.samples`; on ranks other than 0, their share of them.

        `caches` holds one tensor [2, blocks, block_size, K, D] per layer.
        """
        residual = self.embed(batch.tokens)
        x = self.ops.rms_norm(residual, self.layers[0].input_norm, self.spec.rms_eps)
        for block, cache in zip(self.blocks, caches, strict=True):
            x, residual = block(x, residual, cache, batch)
        return self.head(x).float()

    def _make_block(self, layer: Layer, next_norm: Tensor) -> Block:
        """The layer with the norm behind it: in one call where the ops can do that, else op by op."""
        fuse = self.ops.fuse if next_norm is not self.final_norm else not_fused
        fused = fuse(layer, next_norm, self.rope_table, self.spec.rms_eps, self.scale)
        return fused or partial(self._run_layer, layer, next_norm)

    def _run_layer(
        self, layer: Layer, next_norm: Tensor, x: Tensor, residual: Tensor, cache: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        ops, eps = self.ops, self.spec.rms_eps
        query = ops.rope_write(layer.qkv(x), layer.qk_norms, eps, self.rope_table, cache, batch)
        x = layer.o(ops.attention(query, cache, batch, self.scale).flatten(1))
        if next_norm is self.final_norm:  # nobody reads the other tokens any more
            x, residual = x[batch.samples], residual[batch.samples]
        x, residual = ops.add_rms_norm(x, residual, layer.mlp_norm, eps)
        return ops.add_rms_norm(layer.mlp(x), residual, next_norm, eps)


def load_decoder(
    spec: ModelSpec,
    checkpoint: Checkpoint,
    ops: Ops,
    *,
    device: torch.device,
    dtype: torch.dtype,
    max_model_len: int,
    group: Group = ALONE,
) -> Decoder:
    """Streams this rank's share of the checkpoint into a Decoder: beside the weights so far, memory holds one layer's
    newest matrix.

    Raises CheckpointError when a tensor is missing, has another shape, or has no place in the model.
    """
    matrices = Matrices(checkpoint, device, dtype, hold=ops.hold if spec.quantization is None else as_is)
    load = _Loader(spec, checkpoint, ops, device, dtype, group, Share.of(spec, group), matrices)
    embedding = load.vocabulary("model.embed_tokens.weight")
    layers = [load.layer(f"model.layers.{i}.") for i in range(spec.num_layers)]
    final_norm = load.take("model.norm.weight", spec.hidden_size)
    head = embedding if spec.tie_embeddings else load.vocabulary("lm_head.weight")
    decoder = Decoder(
        spec,
        ops,
        layers,
        embed=load.lookup(embedding),
        final_norm=final_norm,
        head=load.logits(head),
        num_kv_heads=load.share.num_kv_heads,
        max_model_len=max_model_len,
    )
    checkpoint.close(ignore=("lm_head.weight",) if spec.tie_embeddings else ())
    return decoder


@dataclass(frozen=True, slots=True)
class _Loader:
    """Names and shapes of the checkpoint, and the part of each that this rank holds."""

    spec: ModelSpec
    checkpoint: Checkpoint
    ops: Ops
    device: torch.device
    dtype: torch.dtype
    group: Group
    share: Share
    matrices: Matrices

    def take(self, name: str, *shape: int, part: Part | None = None) -> Tensor:
        return self.checkpoint.take(name, shape, self.dtype, part).to(self.device)

    def layer(self, prefix: str) -> Layer:
        spec, attn = self.spec, prefix + "self_attn."
        hidden = spec.hidden_size
        parts = [
            (attn + "q_proj", spec.q_size, self.share.q),
            (attn + "k_proj", spec.kv_size, self.share.kv),
            (attn + "v_proj", spec.kv_size, self.share.kv),
        ]
        qk_norms = None
        if spec.qk_norm:
            dim = spec.head_dim
            qk_norms = (self.take(attn + "q_norm.weight", dim), self.take(attn + "k_norm.weight", dim))
        return Layer(
            input_norm=self.take(prefix + "input_layernorm.weight", hidden),
            qkv=self._shared_outputs(parts, hidden, bias=spec.qkv_bias),
            qk_norms=qk_norms,
            o=self.group.reduced(self._shared_inputs(attn + "o_proj", spec.q_size, self.share.q, bias=spec.o_bias)),
            mlp_norm=self.take(prefix + "post_attention_layernorm.weight", hidden),
            mlp=self.group.reduced(
                self._moe(spec.moe, prefix + "mlp.")
                if spec.moe
                else self._mlp(prefix + "mlp.", spec.intermediate_size, self.share.inner)
            ),
        )

    def vocabulary(self, name: str) -> Tensor:
        """Rows of the embedding or of the head; those past the vocabulary are zeros."""
        spec, span = self.spec, self.share.vocab
        known = range(min(span.start, spec.vocab_size), min(span.stop, spec.vocab_size))
        rows = self.take(name, spec.vocab_size, spec.hidden_size, part=Rows(known))
        return rows if len(known) == len(span) else F.pad(rows, (0, 0, 0, len(span) - len(known)))

    def lookup(self, embedding: Tensor) -> Linear:
        """tokens [T] → [T, H]. A token outside this rank's rows adds zeros to the sum over the ranks."""
        if self.dtype == torch.float32 and (halves := in_bfloat16(embedding)) is not None:
            embedding = halves
        if self.group.size == 1:
            return lambda tokens: F.embedding(tokens, embedding).to(self.dtype)
        first, count = self.share.vocab.start, len(self.share.vocab)

        def own_rows(tokens: Tensor) -> Tensor:
            index = tokens - first
            other = (index < 0) | (index >= count)
            rows = F.embedding(index.masked_fill(other, 0), embedding).to(self.dtype)
            return rows.masked_fill(other[:, None], 0)

        return self.group.reduced(own_rows)

    def logits(self, head: Tensor) -> Linear:
        """[S, H] → [S, V] on rank 0, without the padding of the vocabulary."""
        own = self.ops.pack_linear(head, None)
        if self.group.size == 1:
            return own
        return lambda x: self.group.gather(own(x))[:, : self.spec.vocab_size]

    def _shared_outputs(self, parts: list[tuple[str, int, range]], in_size: int, *, bias: bool) -> Linear:
        """Layers [(name, rows, rows of this rank)] in one."""
        weight = self.matrices.read([Piece(name, (rows, in_size), Rows(span)) for name, rows, span in parts])
        biases = [self.take(name + ".bias", rows, part=Rows(span)) for name, rows, span in parts] if bias else []
        return self.ops.pack_linear(weight, torch.cat(biases) if bias else None)

    def _shared_inputs(self, name: str, in_size: int, span: range, *, bias: bool) -> Linear:
        """A layer back to the hidden size, to be summed over the ranks: one of them adds the bias."""
        hidden = self.spec.hidden_size
        weight = self.matrices.read([Piece(name, (hidden, in_size), Columns(span))])
        added = self.take(f"{name}.bias", hidden) if bias else None
        return self.ops.pack_linear(weight, added if self.group.rank == 0 else None)

    def _mlp(self, prefix: str, inner: int, span: range) -> Mlp:
        parts = [(prefix + name, inner, span) for name in ("gate_proj", "up_proj")]
        gate_up = self._shared_outputs(parts, self.spec.hidden_size, bias=self.spec.mlp_bias)
        down = self._shared_inputs(prefix + "down_proj", inner, span, bias=self.spec.mlp_bias)
        return DenseMlp(gate_up, down, self.ops.silu_mul)

    def _moe(self, moe: MoeSpec, prefix: str) -> Mlp:
        hidden, inner, own = self.spec.hidden_size, moe.intermediate_size, self.share.experts
        router = self.ops.pack_router(self.take(prefix + "gate.weight", moe.num_experts, hidden), None)

        def pieces(number: int, names: tuple[str, ...], rows: int, columns: int) -> list[Piece]:
            return [Piece(f"{prefix}experts.{number}.{name}", (rows, columns), Rows(range(rows))) for name in names]

        gate_up = self.matrices.stack([pieces(number, ("gate_proj", "up_proj"), inner, hidden) for number in own])
        down = self.matrices.stack([pieces(number, ("down_proj",), hidden, inner) for number in own])
        for number in set(range(moe.num_experts)) - set(own):
            for name in ("gate_proj", "up_proj", "down_proj"):
                self.matrices.leave(f"{prefix}experts.{number}.{name}")
        experts, route = self.ops.pack_experts(gate_up, down, own.start), self.ops.route
        return lambda x: experts(x, *route(router(x), moe.top_k, moe.norm_topk_prob))
