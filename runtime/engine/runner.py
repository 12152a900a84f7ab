"""Runs a step on the device: rows → index tensors → logits → token ids. Owns the model and the KV cache."""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping

import torch
from torch import Tensor

from runtime.engine.blocks import PADDING_BLOCK
from runtime.engine.channel import Channel, Kind
from runtime.engine.graphs import DecodeGraphs, Record, recorder
from runtime.engine.scheduler import Row
from runtime.engine.sequence import Sequence
from runtime.engine.step import INT32, pack_step, unpack_step
from runtime.ipc import Sampling
from runtime.model.decoder import Decoder
from runtime.model.group import ALONE, Group
from runtime.ops.sampling import Drawn, Sample, SamplingRow, draw

REHEARSED = Sampling(max_tokens=1, temperature=1.0, top_p=0.9, top_k=50)


class Runner:
    """One model on one device. Call `allocate` once after measuring, then `launch`, or `step` to wait for the tokens.

    `others`: the channels to the ranks that hold the rest of the model, where there are any; they do each thing that is
    done here.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        device: torch.device,
        dtype: torch.dtype,
        block_size: int,
        group: Group = ALONE,
        others: tuple[Channel, ...] = (),
    ) -> None:
        self.model = model
        self.device = device
        self.cache_dtype = model.ops.cache_dtype or dtype
        self.block_size = block_size
        self.group = group
        self.caches: list[Tensor] = []
        self.graphs: DecodeGraphs | None = None
        self._others = others
        self._chosen = torch.empty(0, dtype=torch.int64, device=device)  # by the newest step
        self._places: dict[str, int] = {}  # of each request's token among them
        self._eos = tuple(model.spec.eos_token_ids)

    @property
    def alone(self) -> bool:
        """No other rank takes part in a step."""
        return not self._others

    @property
    def kv_bytes_per_block(self) -> int:
        """2 (key and value) · layers · block_size · K · D · bytes, on this rank."""
        spec = self.model.spec
        numbers = 2 * spec.num_layers * self.block_size * self.model.num_kv_heads * spec.head_dim
        return numbers * self.cache_dtype.itemsize

    def allocate(self, num_blocks: int) -> None:
        """Makes the KV pool, replacing the one before. On a CPU the zeros are written now: a lack of memory
        shows here, not in the middle of a request."""
        self.tell(Kind.ALLOCATE, array(INT32, [num_blocks]))
        spec = self.model.spec
        self.graphs = None  # they hold the addresses of the pool before
        shape = (2, num_blocks, self.block_size, self.model.num_kv_heads, spec.head_dim)
        self.caches = []
        self.release_memory()
        self.caches = [torch.zeros(shape, dtype=self.cache_dtype, device=self.device) for _ in range(spec.num_layers)]

    @torch.inference_mode()
    def record(self, sizes: list[int], width: int, record: Record | None = None) -> None:
        """Records decode steps of `sizes` requests over the present KV pool, on every rank; they are used from now on.

        `width`: blocks of the longest request that will come.
        """
        self.tell(Kind.RECORD, array(INT32, [width, *sizes]))
        self.graphs = DecodeGraphs(
            lambda batch: self.model.forward(batch, self.caches),
            record or recorder(self.device),
            sizes,
            width=width,
            vocab_size=self.model.spec.vocab_size if self.group.rank == 0 else None,
            device=self.device,
        )

    def fewest_blocks(self, blocks: int) -> int:
        """The smallest of `blocks` and what fits the GPUs of the other ranks."""
        self.tell(Kind.MEASURE)
        return min([blocks, *(array(INT32, bytes(channel.receive()[1]))[0] for channel in self._others)])

    def step(self, rows: list[Row], allowed: Mapping[str, Tensor] | None = None) -> list[Sample]:
        """`launch`, and waits for what it yields."""
        return self.launch(rows, allowed).read()

    @torch.inference_mode()
    def launch(self, rows: list[Row], allowed: Mapping[str, Tensor] | None = None) -> Drawn:
        """Starts the rows; one sample is to come for each row that asks for one (token INVALID for broken logits).

        `allowed`: [V] bool by request id, where a grammar leaves only some tokens.
        """
        masks = allowed or {}
        sampled = [row for row in rows if row.samples]
        sampling = [self._sampling(row, masks.get(row.seq.id)) for row in sampled]
        size = self.graphs.size_for(rows) if self.graphs else None
        logits = self.logits(rows, size)
        if self.graphs and size and all(row.is_plain for row in sampling):
            drawn = Drawn(self.graphs.choose(sampling, size), sampling)
        else:
            drawn = draw(logits[: len(sampling)], sampling)
        self._chosen = drawn.tokens
        self._places = {row.seq.id: place for place, row in enumerate(sampled)}
        return drawn

    def logits(self, rows: list[Row], size: int | None = None) -> Tensor:
        """[S, V] in float32 for the rows that sample, after all ranks have begun the step. `size`: padded to it."""
        packed = pack_step(rows, self.block_size, self._places, size)
        self.tell(Kind.STEP, packed)
        return self.forward(packed)

    def forward(self, packed: array[int] | bytearray) -> Tensor:
        """This rank's part in one packed step (runtime.engine.step)."""
        batch = unpack_step(packed, self.device, self._newest)
        if self.graphs and self.graphs.holds(batch):
            return self.graphs.forward(batch)
        return self.model.forward(batch, self.caches)

    def _newest(self, count: int) -> Tensor:
        """The first `count` tokens that the step before chose: rank 0, which chose them, tells the others."""
        if self.group.rank > 0:
            self._chosen = torch.empty(count, dtype=torch.int64, device=self.device)
        return self.group.broadcast(self._chosen[:count])

    def rehearse(self, num_tokens: int, num_seqs: int) -> float:
        """Runs a step of `num_tokens` prompt tokens that ends in `num_seqs` samples on the padding block.

        Returns its seconds. Memory and time are those of a real step: what is measured here is what will be needed.
        """
        num_seqs = min(num_seqs, num_tokens)
        counts = [num_tokens // num_seqs] * num_seqs
        counts[0] += num_tokens % num_seqs
        begin = time.perf_counter()
        self.step([self._rehearsed(count) for count in counts])
        return time.perf_counter() - begin

    def _rehearsed(self, count: int) -> Row:
        request = Sequence("", [0] * count, REHEARSED)
        request.blocks = [PADDING_BLOCK] * -(-count // self.block_size)
        return Row(request, 0, count, samples=True)

    def release_memory(self) -> None:
        """Gives what torch's allocator holds without using it back to the GPU."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def tell(self, kind: Kind, numbers: array[int] | None = None) -> None:
        """To every other rank."""
        for channel in self._others:
            channel.send(kind, numbers)

    def _sampling(self, row: Row, allowed: Tensor | None) -> SamplingRow:
        seq, s = row.seq, row.seq.sampling
        position = row.start + row.count
        too_early = position - seq.num_prompt < s.min_tokens
        return SamplingRow(
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            min_p=s.min_p,
            seed=s.seed,
            position=position,
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
