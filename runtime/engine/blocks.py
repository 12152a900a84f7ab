"""The pool of KV blocks: reference counts, prefix cache, and a proof that nothing leaks. Pure Python over ints.

Every block but block 0 is in exactly one of three states:

    free   ──allocate──►  owned (refs ≥ 1)  ──release, no hash──►  free      (LIFO: warm memory first)
                              ▲      └──release, has hash──►  cached         (LRU: oldest evicted first)
                              └──acquire (prefix hit)── cached ──evict──► owned by somebody else

Block 0 is the padding block: padded rows read and write it, so padding needs no branch.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence

PADDING_BLOCK = 0


def root_hash(salt: bytes) -> bytes:
    """Start of a hash chain. Different salts (API keys) never share blocks."""
    return hashlib.sha256(b"deployctl-kv\0" + salt).digest()


def chain_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Hash of a full block: its tokens and everything before them."""
    return hashlib.sha256(parent + array("i", tokens).tobytes()).digest()


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens; block 0 is reserved for padding."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"a KV pool needs at least 2 blocks, got {num_blocks}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._refs = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._free = list(range(num_blocks - 1, PADDING_BLOCK, -1))
        self._cached: dict[int, None] = {}  # insertion order = least recently released first

    @property
    def capacity(self) -> int:
        """Blocks that requests can use."""
        return self.num_blocks - 1

    @property
    def available(self) -> int:
        """Blocks that can be allocated now, cached ones included."""
        return len(self._free) + len(self._cached)

    @property
    def usage(self) -> float:
        """Share of the pool that running requests own, 0…1."""
        return 1.0 - self.available / self.capacity

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks owned once each, or None when there are not enough (then nothing changes)."""
        if count > self.available:
            return None
        blocks = []
        for _ in range(count):
            block = self._free.pop() if self._free else self._evict_oldest()
            self._refs[block] = 1
            blocks.append(block)
        return blocks

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known prefix. Takes no reference: call acquire before anything else."""
        blocks: list[int] = []
        for digest in hashes:
            block = self._block_of.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def idle(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` are cached and owned by nobody."""
        return sum(self._refs[block] == 0 for block in blocks)

    def acquire(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            if self._refs[block] == 0:
                del self._cached[block]
            self._refs[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Gives up one reference each. The tail is released first, so that it is evicted before the head."""
        for block in reversed(blocks):
            self._refs[block] -= 1
            if self._refs[block] > 0:
                continue
            if self._hash_of[block] is None:
                self._free.append(block)
            else:
                self._cached[block] = None

    def seal(self, block: int, digest: bytes) -> None:
        """The block is full and computed: others may reuse it. The first block with a hash keeps it."""
        if self._hash_of[block] is None and digest not in self._block_of:
            self._hash_of[block] = digest
            self._block_of[digest] = block

    def forget(self, blocks: Iterable[int]) -> None:
        """Nobody reuses these owned blocks: what they hold is not what their tokens should have given."""
        for block in blocks:
            digest = self._hash_of[block]
            if digest is not None:
                self._hash_of[block] = None
                del self._block_of[digest]

    def check(self, owners: Iterable[Sequence[int]]) -> None:
        """Proves free + cached + owned = total, and that the references are those of `owners`.

        Raises AssertionError with the first difference.
        """
        refs = [0] * self.num_blocks
        for blocks in owners:
            for block in blocks:
                refs[block] += 1
        if refs != self._refs:
            wrong = next(i for i in range(self.num_blocks) if refs[i] != self._refs[i])
            raise AssertionError(f"block {wrong}: {self._refs[wrong]} references, {refs[wrong]} owners")
        owned = {i for i in range(1, self.num_blocks) if refs[i]}
        if refs[PADDING_BLOCK]:
            raise AssertionError("the padding block is owned")
        groups = (set(self._free), set(self._cached), owned)
        if sum(len(g) for g in groups) != self.capacity or set.union(*groups) != set(range(1, self.num_blocks)):
            raise AssertionError(
                f"free {len(groups[0])} + cached {len(groups[1])} + owned {len(owned)} != {self.capacity}"
            )
        for digest, block in self._block_of.items():
            if self._hash_of[block] != digest:
                raise AssertionError(f"block {block} is indexed under a hash that it does not carry")
        for block in self._cached:
            if self._hash_of[block] is None:
                raise AssertionError(f"block {block} is cached without a hash")

    def _evict_oldest(self) -> int:
        block = next(iter(self._cached))
        del self._cached[block]
        digest = self._hash_of[block]
        assert digest is not None
        del self._block_of[digest]
        self._hash_of[block] = None
        return block
