"""One request as the scheduler sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.engine.blocks import chain_hash, root_hash
from runtime.ipc import FinishReason, Sampling

if TYPE_CHECKING:
    from runtime.engine.grammar import Matcher


class Sequence:
    """Tokens of a request and how many of them are in the KV cache.

        tokens      |p p p p p p p p|o o o|?|      prompt, output, then `unread`: chosen on the device, unknown here
        computed    |c c c c c c c c|c c c| ^      num_computed catches up with num_tokens; it counts planned steps too
        blocks      [  7  |  2  |  9  | …         block i holds tokens [i·block_size, (i+1)·block_size)

    Invariant: len(blocks)·block_size ≥ num_computed; both are 0 while the request waits.
    """

    __slots__ = (
        "_hashes", "arrived_at", "blocks", "cached_tokens", "ended", "id", "matcher", "needs_newest", "num_computed",
        "num_prompt", "sampling", "sealed", "started_at", "steps", "tokens", "unread",
    )  # fmt: skip

    def __init__(
        self, id: str, prompt: list[int], sampling: Sampling, salt: bytes = b"", matcher: Matcher | None = None
    ) -> None:
        self.id = id
        self.tokens = list(prompt)
        self.num_prompt = len(prompt)
        self.sampling = sampling
        self.matcher = matcher  # where the output must match a grammar
        self.needs_newest = matcher is not None or sampling.has_penalty  # to choose the next token
        self.blocks: list[int] = []
        self.num_computed = 0
        self.unread = 0  # tokens that planned steps yield
        self.steps = 0  # planned steps that it is part of and that have not been applied
        self.ended = False  # finished or aborted: what such a step still yields is dropped
        self.sealed = 0  # leading blocks that were offered to the prefix cache
        self.cached_tokens = 0  # prompt tokens found in the prefix cache at first admission
        self.arrived_at = 0.0  # seconds of a monotonic clock; the loop writes both, the scheduler knows no time
        self.started_at: float | None = None  # when it was first part of a step
        self._hashes = [root_hash(salt)]  # _hashes[i + 1] belongs to full block i

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) + self.unread

    def is_full(self, max_model_len: int) -> bool:
        """It ends by its length, whatever the tokens are that are still unread."""
        count = self.num_tokens
        return count - self.num_prompt >= self.sampling.max_tokens or count >= max_model_len

    @property
    def queued_s(self) -> float:
        """Seconds from arrival to its first step."""
        return 0.0 if self.started_at is None else self.started_at - self.arrived_at

    def block_hash(self, index: int, block_size: int) -> bytes:
        """Hash of full block `index`; extends the chain as needed."""
        while len(self._hashes) <= index + 1:
            at = len(self._hashes) - 1
            block = self.tokens[at * block_size : (at + 1) * block_size]
            self._hashes.append(chain_hash(self._hashes[-1], block))
        return self._hashes[index + 1]

    def finish_reason(self, eos_token_ids: frozenset[int], max_model_len: int) -> FinishReason | None:
        """Why the newest output token ends the request, or None."""
        last, sampling = self.tokens[-1], self.sampling
        if self.num_output >= sampling.min_tokens:
            if last in sampling.stop_token_ids:
                return "stop"
            if last in eos_token_ids and not sampling.ignore_eos:
                return "stop"
        if self.num_output >= sampling.max_tokens or len(self.tokens) >= max_model_len:
            return "length"
        return None
