"""Which tokens run in the next step. Pure Python over ints: no tensors, no clock, no I/O.

There is no prefill and no decode phase: each request's `num_computed` catches up with its tokens under one token
budget per step. Running requests come first, oldest first, so that a long prompt is chunked beside the decodes that
were there before it; what is left of the budget admits waiting requests. When blocks run out, the youngest
running request is preempted: it gives its blocks back, waits at the front, and is recomputed.

A step may be planned while the one before it still runs ("in flight"), as if no token of that one ended a request:

    plan 1 ── run ──────── apply 1
                plan 2 ─── run ─────── apply 2     what ends in step 1 has a row in step 2, whose token is dropped

What must be known first waits: such a plan preempts nobody, a grammar or a penalty asks for the newest token first, and
blocks are given back once the last step that uses them has been applied.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from runtime.engine.blocks import BlockPool
from runtime.engine.sequence import Sequence
from runtime.ipc import Stats


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens [start, start + count) of one request in one step. `samples`: the last of them yields a token."""

    seq: Sequence
    start: int
    count: int
    samples: bool


class Scheduler:
    """Admission, chunking, preemption and finish. One call of `plan`, one of `apply` (or `cancel`) per step, in order;
    at most one step is in flight when `plan` is called."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_model_len: int,
        max_num_seqs: int,
        max_batched_tokens: int,
        prefix_cache: bool = True,
    ) -> None:
        if max_batched_tokens < 1 or max_num_seqs < 1:
            raise ValueError("max_batched_tokens and max_num_seqs must be at least 1")
        self.pool = pool
        self.max_model_len = max_model_len
        self.max_num_seqs = max_num_seqs
        self.max_batched_tokens = max_batched_tokens
        self.prefix_cache = prefix_cache
        self.waiting: OrderedDict[str, Sequence] = OrderedDict()
        self.running: dict[str, Sequence] = {}  # insertion order = age
        self.leaving: list[Sequence] = []  # ended, with blocks that a step in flight uses
        self.in_flight = 0  # steps planned and not yet applied
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting or self.leaving)

    @property
    def max_request_tokens(self) -> int:
        """Prompt + output of one request can never be longer than this."""
        return min(self.max_model_len, self.pool.capacity * self.pool.block_size)

    def add(self, seq: Sequence) -> None:
        """Queues a request. Raises ValueError when it can never run."""
        longest = min(seq.num_prompt + seq.sampling.max_tokens, self.max_model_len)
        if seq.num_prompt < 1:
            raise ValueError("the prompt is empty")
        if seq.num_prompt >= self.max_model_len:
            raise ValueError(f"the prompt has {seq.num_prompt} tokens; the model's limit is {self.max_model_len}")
        if longest > self.max_request_tokens:
            raise ValueError(
                f"prompt + max_tokens is {longest} tokens; the KV cache holds {self.max_request_tokens}: "
                "ask for fewer tokens or raise kv_cache_gib"
            )
        if seq.id in self.waiting or seq.id in self.running:
            raise ValueError(f"request id {seq.id!r} is already in use")
        self.waiting[seq.id] = seq

    def abort(self, request_id: str) -> None:
        """Forgets a request, wherever it is. Unknown ids are fine: it may just have finished."""
        if (seq := self.running.get(request_id)) is not None:
            self.finish(seq)
        self.waiting.pop(request_id, None)

    def abort_all(self) -> None:
        for request_id in [*self.running, *self.waiting]:
            self.abort(request_id)

    def plan(self) -> list[Row]:
        """The rows of the next step, with blocks for each of their tokens.

        Empty when there is no work, or when the step in flight must be applied first.
        """
        rows: list[Row] = []
        if self.in_flight and any(seq.unread and seq.needs_newest for seq in self.running.values()):
            return rows
        budget = self.max_batched_tokens
        preemptions = self.preemptions
        for seq in list(self.running.values()):
            if seq.id not in self.running:
                continue  # preempted for an older one in this very loop
            if seq.unread and seq.is_full(self.max_model_len):
                continue  # its last token is on its way
            count = min(seq.num_tokens - seq.num_computed, budget)
            if not count:
                continue
            if self.in_flight and self._missing(seq, count) > self.pool.available:
                return []
            if self._make_room(seq, count):
                rows.append(_row(seq, count))
                budget -= count
        if self.preemptions == preemptions:
            self._admit(rows, budget)
        self._launch(rows)
        return rows

    def apply(self, rows: list[Row], tokens: list[int]) -> None:
        """The step has run: `tokens` holds one id for each row that samples, in order."""
        self.steps += 1
        sampled = iter(tokens)
        for row in rows:
            seq = row.seq
            token = next(sampled) if row.samples else None
            if not seq.ended:
                if self.prefix_cache:
                    self._seal(seq, row.start + row.count)
                if token is not None:
                    seq.tokens.append(token)
        self._land(rows)

    def cancel(self, rows: list[Row]) -> None:
        """The step that was planned last did not run: its rows are to be planned again."""
        for row in rows:
            row.seq.num_computed = row.start
        self._land(rows)

    def finish(self, seq: Sequence, *, broken: bool = False) -> None:
        """Takes a running request out and gives its blocks back, as soon as no step in flight uses them. `broken`: none
        of them is kept for other requests."""
        del self.running[seq.id]
        seq.ended = True
        if broken:
            self.pool.forget(seq.blocks)
        if seq.steps:
            self.leaving.append(seq)
        else:
            self._release(seq)

    def stats(self) -> Stats:
        return Stats(
            running=len(self.running),
            waiting=len(self.waiting),
            kv_usage=self.pool.usage,
            preemptions=self.preemptions,
            prefix_queries=self.prefix_queries,
            prefix_hits=self.prefix_hits,
            steps=self.steps,
        )

    def check(self) -> None:
        """Proves that blocks and requests agree. Raises AssertionError."""
        self.pool.check([seq.blocks for seq in (*self.running.values(), *self.leaving)])
        for seq in self.running.values():
            assert len(seq.blocks) * self.pool.block_size >= seq.num_computed, seq.id
            assert seq.unread <= seq.steps <= self.in_flight, seq.id
        for seq in self.leaving:
            assert seq.ended, seq.id
            assert 0 < seq.steps <= self.in_flight, seq.id
        for seq in self.waiting.values():
            assert not seq.blocks, seq.id
            assert not seq.num_computed, seq.id

    def _launch(self, rows: list[Row]) -> None:
        """The rows count as computed from here on."""
        for row in rows:
            row.seq.num_computed = row.start + row.count
            row.seq.unread += row.samples
            row.seq.steps += 1
        self.in_flight += bool(rows)

    def _land(self, rows: list[Row]) -> None:
        self.in_flight -= 1
        for row in rows:
            row.seq.unread -= row.samples
            row.seq.steps -= 1
        for seq in [seq for seq in self.leaving if not seq.steps]:
            self.leaving.remove(seq)
            self._release(seq)

    def _missing(self, seq: Sequence, count: int) -> int:
        """Blocks that `seq` lacks for its next `count` tokens."""
        return self.pool.blocks_for(seq.num_computed + count) - len(seq.blocks)

    def _make_room(self, seq: Sequence, count: int) -> bool:
        """Gives `seq` blocks for `count` more tokens, preempting the youngest as needed. False: that was itself."""
        missing = self._missing(seq, count)
        while missing > self.pool.available:
            victim = next(reversed(self.running.values()))
            self._preempt(victim)
            if victim is seq:
                return False
        if missing > 0:
            blocks = self.pool.allocate(missing)
            assert blocks is not None
            seq.blocks += blocks
        return True

    def _preempt(self, seq: Sequence) -> None:
        self.preemptions += 1
        del self.running[seq.id]
        self._release(seq)
        self.waiting[seq.id] = seq
        self.waiting.move_to_end(seq.id, last=False)

    def _admit(self, rows: list[Row], budget: int) -> None:
        """Admits in order of arrival while budget, seats and blocks for the whole request so far are there."""
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            seq = next(iter(self.waiting.values()))
            matched = self._match(seq)
            missing = self.pool.blocks_for(len(seq.tokens)) - len(matched)
            if missing > self.pool.available - self.pool.idle(matched):
                return
            self.pool.acquire(matched)
            blocks = self.pool.allocate(missing)
            assert blocks is not None
            del self.waiting[seq.id]
            self.running[seq.id] = seq
            seq.blocks = matched + blocks
            seq.num_computed = len(matched) * self.pool.block_size
            seq.sealed = len(matched)
            if not seq.num_output:
                seq.cached_tokens = seq.num_computed
                self.prefix_queries += seq.num_prompt
                self.prefix_hits += seq.cached_tokens
            count = min(len(seq.tokens) - seq.num_computed, budget)
            rows.append(_row(seq, count))
            budget -= count

    def _match(self, seq: Sequence) -> list[int]:
        """Cached blocks of the request's prefix; at least its last token is left to compute."""
        if not self.prefix_cache:
            return []
        size = self.pool.block_size
        full = (len(seq.tokens) - 1) // size
        return self.pool.match(seq.block_hash(i, size) for i in range(full))

    def _seal(self, seq: Sequence, computed: int) -> None:
        size = self.pool.block_size
        full = computed // size
        for index in range(seq.sealed, full):
            self.pool.seal(seq.blocks[index], seq.block_hash(index, size))
        seq.sealed = full

    def _release(self, seq: Sequence) -> None:
        self.pool.release(seq.blocks)
        seq.blocks = []
        seq.num_computed = 0
        seq.sealed = 0


def _row(seq: Sequence, count: int) -> Row:
    start = seq.num_computed
    return Row(seq, start, count, samples=start + count == seq.num_tokens)
