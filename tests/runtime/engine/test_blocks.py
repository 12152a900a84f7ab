"""The block pool: nothing leaks, prefixes are found, the oldest idle block goes first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.blocks import PADDING_BLOCK, BlockPool, chain_hash, root_hash


def hashes(count: int, salt: bytes = b"") -> list[bytes]:
    chain = [root_hash(salt)]
    for i in range(count):
        chain.append(chain_hash(chain[-1], [i] * 4))
    return chain[1:]


def sealed(pool: BlockPool, digests: list[bytes]) -> list[int]:
    blocks = pool.allocate(len(digests))
    assert blocks is not None
    for block, digest in zip(blocks, digests, strict=True):
        pool.seal(block, digest)
    return blocks


def test_the_padding_block_is_never_handed_out() -> None:
    pool = BlockPool(8, 4)
    blocks = pool.allocate(7)
    assert blocks is not None
    assert PADDING_BLOCK not in blocks
    assert pool.allocate(1) is None


def test_a_refused_allocation_changes_nothing() -> None:
    pool = BlockPool(4, 4)
    assert pool.allocate(4) is None
    pool.check([])
    assert pool.available == 3


def test_a_released_prefix_is_found_again() -> None:
    pool, digests = BlockPool(8, 4), hashes(3)
    blocks = sealed(pool, digests)
    pool.release(blocks)
    assert pool.match(digests) == blocks


def test_a_prefix_of_another_key_is_not_found() -> None:
    pool = BlockPool(8, 4)
    pool.release(sealed(pool, hashes(3, b"alice")))
    assert pool.match(hashes(3, b"bob")) == []


def test_eviction_takes_the_oldest_idle_tail_first() -> None:
    pool, digests = BlockPool(4, 4), hashes(3)
    first, second, third = sealed(pool, digests)
    pool.release([first, second, third])
    assert pool.allocate(1) == [third]
    assert pool.match(digests) == [first, second]


def test_a_shared_block_survives_one_of_its_owners() -> None:
    pool, digests = BlockPool(4, 4), hashes(1)
    blocks = sealed(pool, digests)
    pool.acquire(blocks)
    pool.release(blocks)
    pool.check([blocks])
    assert pool.available == 2


def test_check_names_a_leaked_block() -> None:
    pool = BlockPool(4, 4)
    blocks = pool.allocate(1)
    assert blocks is not None
    with pytest.raises(AssertionError, match=f"block {blocks[0]}: 1 references, 0 owners"):
        pool.check([])


@given(st.lists(st.tuples(st.sampled_from(["take", "drop", "share"]), st.integers(0, 9)), max_size=60))
def test_any_history_keeps_free_plus_cached_plus_owned_equal_to_total(history: list[tuple[str, int]]) -> None:
    pool = BlockPool(12, 4)
    owners: list[list[int]] = []
    for action, number in history:
        if action == "take":
            digests = hashes(number % 4 + 1, bytes([number % 3]))
            matched = pool.match(digests)
            pool.acquire(matched)
            fresh = pool.allocate(len(digests) - len(matched))
            if fresh is None:
                pool.release(matched)
                continue
            for block, digest in zip(fresh, digests[len(matched) :], strict=True):
                pool.seal(block, digest)
            owners.append(matched + fresh)
        elif owners and action == "drop":
            pool.release(owners.pop(number % len(owners)))
        elif owners:
            shared = owners[number % len(owners)]
            pool.acquire(shared)
            owners.append(list(shared))
        pool.check(owners)
