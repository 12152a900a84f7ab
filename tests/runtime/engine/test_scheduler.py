"""The scheduler: one token budget, oldest first, youngest preempted, and every request reaches its end."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine.blocks import BlockPool
from runtime.engine.scheduler import Row, Scheduler
from runtime.engine.sequence import Sequence
from runtime.ipc import Sampling

NO_EOS: frozenset[int] = frozenset()


def scheduler(blocks: int = 33, *, seqs: int = 8, budget: int = 16, length: int = 64, cache: bool = True) -> Scheduler:
    return Scheduler(
        BlockPool(blocks, 4),
        max_model_len=length,
        max_num_seqs=seqs,
        max_batched_tokens=budget,
        prefix_cache=cache,
    )


def request(name: str, prompt: int, output: int = 4, first: int = 0) -> Sequence:
    return Sequence(name, list(range(first, first + prompt)), Sampling(max_tokens=output, temperature=0))


def run_step(sched: Scheduler) -> list[Row]:
    """A model whose next token is a function of everything before it, as a real one's is."""
    rows = sched.plan()
    tokens = [sum(r.seq.tokens) % 1000 for r in rows if r.samples]
    sched.apply(rows, tokens)
    for row in rows:
        if row.samples and row.seq.finish_reason(NO_EOS, sched.max_model_len):
            sched.finish(row.seq)
    sched.check()
    return rows


def shape(rows: list[Row]) -> list[tuple[str, int, int]]:
    return [(r.seq.id, r.start, r.count) for r in rows]


def test_a_long_prompt_is_chunked_beside_a_running_decode() -> None:
    sched = scheduler(budget=8)
    sched.add(request("short", 3))
    run_step(sched)
    sched.add(request("long", 20, first=100))
    assert shape(run_step(sched)) == [("short", 3, 1), ("long", 0, 7)]
    assert shape(run_step(sched)) == [("short", 4, 1), ("long", 7, 7)]


def test_requests_are_admitted_in_order_of_arrival() -> None:
    sched = scheduler(seqs=2)
    for name in "abc":
        sched.add(request(name, 2))
    assert [name for name, _, _ in shape(run_step(sched))] == ["a", "b"]


def test_the_youngest_is_preempted_and_waits_at_the_front() -> None:
    sched = scheduler(blocks=5, cache=False)  # 4 usable blocks of 4 tokens
    sched.add(request("old", 7, output=8))
    sched.add(request("young", 7, output=8, first=50))
    sched.add(request("late", 2, first=90))
    run_step(sched)
    while not sched.preemptions:
        run_step(sched)
    assert list(sched.running) == ["old"]
    assert list(sched.waiting) == ["young", "late"]


def test_a_cached_prefix_is_not_computed_again() -> None:
    sched = scheduler()
    sched.add(request("first", 13, output=1))
    run_step(sched)
    sched.add(request("second", 13, output=1))
    assert shape(run_step(sched)) == [("second", 12, 1)]
    assert sched.prefix_hits == 12


def test_a_prompt_that_is_cached_whole_still_computes_its_last_token() -> None:
    sched = scheduler()
    sched.add(request("first", 8, output=1))
    run_step(sched)
    sched.add(request("second", 8, output=1))
    assert shape(run_step(sched)) == [("second", 4, 4)]


def test_an_aborted_request_gives_its_blocks_back() -> None:
    sched = scheduler(cache=False)
    sched.add(request("a", 10))
    run_step(sched)
    sched.abort("a")
    sched.check()
    assert sched.pool.available == sched.pool.capacity
    assert not sched.has_work


def test_aborting_a_waiting_or_unknown_request_is_fine() -> None:
    sched = scheduler()
    sched.add(request("a", 10))
    sched.abort("a")
    sched.abort("never seen")
    assert not sched.has_work


@pytest.mark.parametrize(
    ("prompt", "output", "reason"),
    [(0, 4, "empty"), (64, 4, "limit is 64"), (30, 30, "KV cache holds 32")],
)
def test_a_request_that_can_never_run_is_refused(prompt: int, output: int, reason: str) -> None:
    sched = scheduler(blocks=9)
    with pytest.raises(ValueError, match=reason):
        sched.add(request("a", prompt, output))


def test_a_second_request_with_the_same_id_is_refused() -> None:
    sched = scheduler()
    sched.add(request("a", 3))
    with pytest.raises(ValueError, match="already in use"):
        sched.add(request("a", 3))


requests = st.lists(
    st.tuples(st.integers(1, 25), st.integers(1, 12), st.sampled_from([0, 0, 7, 300])), min_size=1, max_size=12
)


@settings(deadline=None)
@given(requests, st.integers(1, 20), st.integers(1, 6), st.integers(11, 40), st.booleans())
def test_every_request_ends_with_the_tokens_it_would_have_alone(
    wanted: list[tuple[int, int, int]], budget: int, seqs: int, blocks: int, cache: bool
) -> None:
    crowd = scheduler(blocks, seqs=seqs, budget=budget, cache=cache)
    together = [request(str(i), *one) for i, one in enumerate(wanted)]
    for seq in together:
        crowd.add(seq)
    for _ in range(10_000):
        if not crowd.has_work:
            break
        rows = run_step(crowd)
        assert 0 < sum(r.count for r in rows) <= budget
        assert len(crowd.running) <= seqs
    assert not crowd.has_work
    for i, one in enumerate(wanted):
        alone = scheduler(200, budget=1000, cache=False)
        seq = request(str(i), *one)
        alone.add(seq)
        while alone.has_work:
            run_step(alone)
        assert together[i].tokens == seq.tokens


@pytest.mark.parametrize("queued", [10, 100_000])
def test_a_step_looks_at_the_head_of_the_queue_only(queued: int) -> None:
    sched = scheduler(seqs=1)
    touched: list[str] = []

    class Watched(Sequence):
        def block_hash(self, index: int, block_size: int) -> bytes:
            touched.append(self.id)
            return super().block_hash(index, block_size)

    for i in range(queued):
        sched.add(Watched(str(i), [1, 2, 3, 4, 5], Sampling(max_tokens=2)))
    sched.plan()
    assert set(touched) == {"0"}
