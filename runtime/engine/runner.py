"""Runs a step on the device: rows → index tensors → logits → token ids. Owns the model and the KV cache."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from itertools import accumulate

import torch
from torch import Tensor

from runtime.engine.blocks import PADDING_BLOCK
from runtime.engine.scheduler import Row
from runtime.model.decoder import Decoder
from runtime.ops.batch import Batch
from runtime.ops.sampling import Sample, SamplingRow, sample


class Runner:
    """One model on one device. Call `allocate` once after measuring, then `step`."""

    def __init__(self, model: Decoder, *, device: torch.device, dtype: torch.dtype, block_size: int) -> None:
        self.model = model
        self.device = device
        self.dtype = dtype
        self.block_size = block_size
        self.caches: list[Tensor] = []
        self._eos = tuple(model.spec.eos_token_ids)

    @property
    def kv_bytes_per_block(self) -> int:
        """2 (key and value) · layers · block_size · K · D · bytes."""
        spec = self.model.spec
        return 2 * spec.num_layers * self.block_size * spec.kv_size * self.dtype.itemsize

    def allocate(self, num_blocks: int) -> None:
        """Makes the KV pool, replacing the one before. On a CPU the zeros are written now: a lack of memory
        shows here, not in the middle of a request."""
        spec = self.model.spec
        shape = (2, num_blocks, self.block_size, spec.num_kv_heads, spec.head_dim)
        self.caches = []
        self.caches = [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(spec.num_layers)]

    @torch.inference_mode()
    def step(self, rows: list[Row], allowed: Mapping[str, Tensor] | None = None) -> list[Sample]:
        """Runs the rows; returns one sample for each row that asks for one (token INVALID for broken logits).

        `allowed`: [V] bool by request id, where a grammar leaves only some tokens.
        """
        batch = self._batch(rows)
        logits = self.model.forward(batch, self.caches)
        masks = allowed or {}
        sampling = [self._sampling(row, masks.get(row.seq.id)) for row in rows if row.samples]
        return sample(logits, sampling) if sampling else []

    @torch.inference_mode()
    def rehearse(self, num_tokens: int, num_seqs: int) -> float:
        """Runs a step of `num_tokens` prompt tokens that ends in `num_seqs` samples on the padding block.

        Returns its seconds. Memory and time are those of a real step: what is measured here is what will be needed.
        """
        num_seqs = min(num_seqs, num_tokens)
        counts = [num_tokens // num_seqs] * num_seqs
        counts[0] += num_tokens % num_seqs
        starts = [0, *accumulate(counts)]
        blocks = -(-max(counts) // self.block_size)
        batch = Batch(
            tokens=self._ints([0] * num_tokens),
            positions=self._ints(i for count in counts for i in range(count)),
            slots=self._ints([PADDING_BLOCK] * num_tokens),
            starts=self._ints(starts).int(),
            contexts=self._ints(counts).int(),
            tables=torch.full((num_seqs, blocks), PADDING_BLOCK, dtype=torch.int32, device=self.device),
            samples=self._ints(end - 1 for end in starts[1:]),
            rows=tuple((count, count) for count in counts),
        )
        begin = time.perf_counter()
        logits = self.model.forward(batch, self.caches)
        sample(logits, [SamplingRow(1.0, 0.9, 50, 0.0, 0, 0)] * num_seqs)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    def _batch(self, rows: list[Row]) -> Batch:
        size = self.block_size
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for row in rows:
            end = row.start + row.count
            blocks = row.seq.blocks
            tokens += row.seq.tokens[row.start : end]
            positions += range(row.start, end)
            slots += [blocks[i // size] * size + i % size for i in range(row.start, end)]
        starts = [0, *accumulate(row.count for row in rows)]
        contexts = [row.start + row.count for row in rows]
        width = -(-max(contexts) // size)
        tables = [(row.seq.blocks + [PADDING_BLOCK] * width)[:width] for row in rows]
        return Batch(
            tokens=self._ints(tokens),
            positions=self._ints(positions),
            slots=self._ints(slots),
            starts=self._ints(starts).int(),
            contexts=self._ints(contexts).int(),
            tables=torch.tensor(tables, dtype=torch.int32, device=self.device),
            samples=self._ints(starts[i + 1] - 1 for i, row in enumerate(rows) if row.samples),
            rows=tuple((row.count, row.start + row.count) for row in rows),
        )

    def _sampling(self, row: Row, allowed: Tensor | None) -> SamplingRow:
        seq, s = row.seq, row.seq.sampling
        too_early = seq.num_output < s.min_tokens
        return SamplingRow(
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            min_p=s.min_p,
            seed=s.seed,
            position=len(seq.tokens),
            banned=(*self._eos, *s.stop_token_ids) if too_early else (),
            bias=s.logit_bias,
            presence_penalty=s.presence_penalty,
            frequency_penalty=s.frequency_penalty,
            repetition_penalty=s.repetition_penalty,
            prompt=seq.tokens[: seq.num_prompt] if s.repetition_penalty != 1 else (),
            output=seq.tokens[seq.num_prompt :] if s.has_penalty else (),
            logprobs=s.logprobs,
            allowed=allowed,
        )

    def _ints(self, values: Iterable[int]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.int64, device=self.device)
