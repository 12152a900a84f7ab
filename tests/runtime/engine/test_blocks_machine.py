"""The block pool under any history: a plain model of it says what each block holds and which one goes next."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from runtime.engine.blocks import PADDING_BLOCK, BlockPool, chain_hash, root_hash

SIZE = 2
# A short chain from few letters, so that histories meet the same prefixes again.
contents = st.lists(st.integers(0, 1), min_size=1, max_size=5)
salts = st.sampled_from([b"", b"alice"])


def digests(letters: list[int], salt: bytes) -> list[bytes]:
    """One hash for each full block whose tokens are a letter twice."""
    chain = [root_hash(salt)]
    for letter in letters:
        chain.append(chain_hash(chain[-1], [letter] * SIZE))
    return chain[1:]


class PoolMachine(RuleBasedStateMachine):
    """Requests take prefixes and fresh blocks, seal what they filled, and go. `content` is what a block was last
    filled with (by its hash); `idle` lists the cached blocks, the next victim first."""

    owners = Bundle("owners")

    @initialize(num_blocks=st.integers(2, 9))
    def make(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks, SIZE)
        self.held: dict[int, list[int]] = {}
        self.content: dict[int, bytes] = {}
        self.idle: list[int] = []
        self.made = 0

    @rule(target=owners, letters=contents, salt=salts, filled=st.integers(0, 5))
    def admit(self, letters: list[int], salt: bytes, filled: int) -> int:
        """A request with `letters` as its prompt, of which the first `filled` blocks get computed."""
        wanted = digests(letters, salt)
        matched = self.pool.match(wanted)
        assert [self.content[block] for block in matched] == wanted[: len(matched)], "a prefix of somebody else"
        missing = len(wanted) - len(matched)
        room = self.pool.available - self.pool.idle(matched)
        if missing > room:
            before = self.pool.available
            assert self.pool.allocate(self.pool.available + 1) is None
            assert self.pool.available == before
            return cast(int, multiple())
        self.pool.acquire(matched)
        self.idle = [block for block in self.idle if block not in matched]
        fresh = self._allocate(missing)
        self.made += 1
        self.held[self.made] = matched + fresh
        for index in range(len(matched), min(filled, len(wanted))):
            block = self.held[self.made][index]
            known = bool(self.pool.match(wanted[: index + 1])[index:])
            self.pool.seal(block, wanted[index])
            if not known:
                self.content[block] = wanted[index]
        return self.made

    @rule(owner=owners, count=st.integers(0, 3))
    def grow(self, owner: int, count: int) -> None:
        """A running request needs room for its next tokens."""
        if count <= self.pool.available:
            self.held[owner] += self._allocate(count)
        else:
            assert self.pool.allocate(count) is None

    @rule(owner=consumes(owners))
    def leave(self, owner: int) -> None:
        """A request ends, is aborted, or is preempted."""
        blocks = self.held.pop(owner)
        shared = {block for others in self.held.values() for block in others}
        self.pool.release(blocks)
        self.idle += [block for block in reversed(blocks) if block not in shared and block in self.content]

    def _allocate(self, count: int) -> list[int]:
        evicted = max(0, count - (self.pool.available - len(self.idle)))
        victims, self.idle = self.idle[:evicted], self.idle[evicted:]
        blocks = self.pool.allocate(count)
        assert blocks is not None
        assert len(set(blocks)) == count
        owned = {block for held in self.held.values() for block in held}
        assert not owned & set(blocks), "a block is owned twice"
        assert PADDING_BLOCK not in blocks
        assert set(victims) == set(blocks) & set(self.content), "not the blocks that were idle longest"
        for victim in victims:
            del self.content[victim]
        return blocks

    @invariant()
    def nothing_leaks(self) -> None:
        self.pool.check(list(self.held.values()))
        owned = {block for held in self.held.values() for block in held}
        assert self.pool.available == self.pool.capacity - len(owned)
        assert self.pool.usage == 1 - self.pool.available / self.pool.capacity

    def teardown(self) -> None:
        for blocks in getattr(self, "held", {}).values():
            self.pool.release(blocks)
        if hasattr(self, "pool"):
            self.pool.check([])
            assert self.pool.available == self.pool.capacity


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestPool.pytestmark = [pytest.mark.timeout(600)]  # type: ignore[attr-defined]  # for the search for a short failure
