"""The scheduler under any history, over a KV cache that remembers what was written into each of its slots.

With `overlap`, each step is planned and computed before the tokens of the one before it are applied.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runtime.engine.blocks import BlockPool
from runtime.engine.scheduler import Row, Scheduler
from runtime.engine.sequence import Sequence
from runtime.ipc import Sampling

EOS = 3
VOCAB = 12
MAX_MODEL_LEN = 40


def state_of(seq: Sequence, tokens: list[int], end: int) -> bytes:
    """What a real model's keys and values are a function of: the tokens up to here. The salt stands for the key."""
    return hashlib.sha256(seq.block_hash(-1, 1) + bytes(tokens[:end])).digest()


def next_token(tokens: list[int]) -> int:
    """A model whose next token is a function of everything before it."""
    return hashlib.sha256(bytes(tokens)).digest()[0] % VOCAB


@dataclass(frozen=True)
class Wish:
    """A request to come: `shared` tokens of its family, then its own."""

    family: int
    shared: int
    own: list[int]
    output: int
    salt: bytes
    ignore_eos: bool
    penalty: bool  # asks for its newest token


wishes = st.builds(
    Wish,
    family=st.integers(0, 1),
    shared=st.integers(0, 9),
    own=st.lists(st.integers(0, VOCAB - 1), max_size=4),
    output=st.integers(1, 12),
    salt=st.sampled_from([b"", b"", b"alice"]),
    ignore_eos=st.booleans(),
    penalty=st.sampled_from([False, False, True]),
)


@dataclass(frozen=True)
class Flight:
    """A step that was computed: its rows, the blocks of each, and the tokens that the rows which sample have chosen."""

    rows: list[Row]
    blocks: list[list[int]]
    tokens: list[int]


@dataclass
class Request:
    """What the machine knows of a request: its place in the queue of arrivals, and what it asked for."""

    arrival: int
    seq: Sequence
    prompt: list[int]


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, are aborted, and are stepped through a tiny pool."""

    @initialize(
        blocks=st.integers(3, 10),
        size=st.integers(1, 4),
        seqs=st.integers(2, 5),
        budget=st.integers(1, 12),
        cache=st.booleans(),
        overlap=st.booleans(),
    )
    def make(self, blocks: int, size: int, seqs: int, budget: int, cache: bool, overlap: bool) -> None:
        self.sched = Scheduler(
            BlockPool(blocks, size),
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=seqs,
            max_batched_tokens=budget,
            prefix_cache=cache,
        )
        self.overlap = overlap
        self.flight: Flight | None = None
        self.slots: dict[int, bytes] = {}
        self.requests: dict[str, Request] = {}
        self.arrivals = 0

    @rule(wanted=st.lists(wishes, min_size=1, max_size=4))
    def add(self, wanted: list[Wish]) -> None:
        """Prompts that share their beginnings with others of their family."""
        for wish in wanted:
            prompt = [wish.family] * wish.shared + wish.own
            sampling = Sampling(wish.output, ignore_eos=wish.ignore_eos, presence_penalty=float(wish.penalty))
            seq = Sequence(str(self.arrivals), prompt, sampling, wish.salt)
            if not prompt or min(len(prompt) + wish.output, MAX_MODEL_LEN) > self.sched.max_request_tokens:
                with pytest.raises(ValueError, match=r"empty|KV cache"):
                    self.sched.add(seq)
                continue
            self.sched.add(seq)
            with pytest.raises(ValueError, match="already in use"):
                self.sched.add(Sequence(seq.id, [1], Sampling(1)))
            self.requests[seq.id] = Request(self.arrivals, seq, prompt)
            self.arrivals += 1

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        """The client has gone, whatever its request was doing."""
        chosen = data.draw(st.sampled_from(sorted(self.requests)))
        self.sched.abort(chosen)
        del self.requests[chosen]
        self.sched.abort(chosen)  # twice, as when it has just finished

    @rule(count=st.integers(1, 8), broken=st.none() | st.integers(0, 4))
    def step(self, count: int, broken: int | None) -> None:
        """Some steps; in the first, the row `broken` fails as a request with broken logits does."""
        self.run_step(broken)
        for _ in range(count - 1):
            self.run_step(None)

    def run_all(self) -> None:
        """No request starves: with nobody new, all end within the steps that their tokens need one by one."""
        tokens = sum(len(r.prompt) + r.seq.sampling.max_tokens for r in self.requests.values())
        # Recomputing after a preemption can cost each request its tokens again for each one ahead of it. With overlap,
        # a step may have to wait for the one before it.
        for _ in range((1 + self.overlap) * tokens * (len(self.requests) + 1) + 2):
            if not self.sched.has_work:
                break
            self.run_step(None)
        assert not self.sched.has_work
        assert not self.requests
        assert self.flight is None
        assert self.sched.pool.available == self.sched.pool.capacity

    def run_step(self, broken: int | None) -> None:
        launched = self.launch()
        due, self.flight = (self.flight, launched) if self.overlap else (launched, None)
        if due is not None:
            self.land(due, broken)

    def launch(self) -> Flight | None:
        running, waiting = list(self.sched.running), list(self.sched.waiting)
        preemptions = self.sched.preemptions
        rows = self.sched.plan()
        if self.flight is None:
            assert bool(rows) == self.sched.has_work
        assert sum(row.count for row in rows) <= self.sched.max_batched_tokens
        assert all(row.count > 0 for row in rows)
        assert len({row.seq.id for row in rows}) == len(rows) <= self.sched.max_num_seqs
        assert not any(row.seq.unread > 1 for row in rows if row.seq.needs_newest), "it needs its newest token"
        lost = [name for name in running if name not in self.sched.running]
        assert not (lost and self.flight), "a request in flight was preempted"
        assert lost == running[len(running) - len(lost) :], "not the youngest was preempted"
        assert self.sched.preemptions == preemptions + len(lost)
        admitted = [name for name in waiting if name in self.sched.running]
        assert admitted == waiting[: len(admitted)], "a request was overtaken"
        if running and rows and self.flight is None:
            assert rows[0].seq.id == running[0], "the oldest waits"
        chosen = [token for row in rows if (token := self.compute(row)) is not None]
        return Flight(rows, [list(row.seq.blocks) for row in rows], chosen) if rows else None

    def land(self, flight: Flight, broken: int | None) -> None:
        self.sched.apply(flight.rows, flight.tokens)
        sampling = [row for row in flight.rows if row.samples]
        for number, row in enumerate(sampling):
            if row.seq.ended:
                continue
            if number == broken or row.seq.finish_reason(frozenset({EOS}), MAX_MODEL_LEN):
                self.sched.finish(row.seq)
                self.end(row.seq)

    def compute(self, row: Row) -> int | None:
        """Writes the row's slots, then reads all that its last token sees; the token that it chooses, if it samples."""
        seq, size = row.seq, self.sched.pool.block_size
        tokens = [*seq.tokens, *self.unread(seq)]
        assert row.start + row.count == seq.num_computed <= len(tokens)
        assert row.samples == (row.start + row.count == len(tokens))
        users = [(other, other.blocks) for other in self.sched.running.values()]
        if self.flight is not None:
            users += zip((row.seq for row in self.flight.rows), self.flight.blocks, strict=True)
        others = {b for other, blocks in users if other is not seq for b in blocks}
        for at in range(row.start, row.start + row.count):
            block = seq.blocks[at // size]
            assert block not in others, "a shared block is written"
            self.slots[block * size + at % size] = state_of(seq, tokens, at + 1)
        for at in range(row.start + row.count):
            slot = seq.blocks[at // size] * size + at % size
            assert self.slots[slot] == state_of(seq, tokens, at + 1), f"position {at} holds another request's keys"
        return next_token(tokens) if row.samples else None

    def unread(self, seq: Sequence) -> list[int]:
        """What the step in flight has chosen for `seq`, as the device knows it."""
        if self.flight is None:
            return []
        sampling = (row.seq for row in self.flight.rows if row.samples)
        return [token for other, token in zip(sampling, self.flight.tokens, strict=True) if other is seq]

    def end(self, seq: Sequence) -> None:
        """The output is the one of a request alone."""
        tokens = list(self.requests.pop(seq.id).prompt)
        while len(tokens) < len(seq.tokens):
            tokens.append(next_token(tokens))
        assert seq.tokens == tokens

    @invariant()
    def blocks_and_requests_agree(self) -> None:
        self.sched.check()
        assert {*self.sched.running, *self.sched.waiting} == set(self.requests)
        for request in self.requests.values():
            assert request.seq.num_computed <= request.seq.num_tokens
        assert len(self.sched.running) <= self.sched.max_num_seqs

    @invariant()
    def nobody_overtakes(self) -> None:
        arrivals = [self.requests[name].arrival for name in (*self.sched.running, *self.sched.waiting)]
        assert arrivals == sorted(arrivals)

    def teardown(self) -> None:
        if hasattr(self, "sched"):
            self.run_all()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestScheduler.pytestmark = [pytest.mark.timeout(600)]  # type: ignore[attr-defined]  # for the search for a short failure
