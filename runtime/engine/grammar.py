"""Structured output: which tokens a request's grammar allows next. The matcher is llguidance's.

The server has validated a grammar within its limits before it comes here; what fails all the same fails its request.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

_BITS = torch.arange(8, dtype=torch.uint8)


class GrammarError(ValueError):
    """The grammar cannot be used, or the output has left it."""


class Matcher:
    """How far one request's output is in its grammar. Output only moves forward: preemption recomputes the cache, not
    the tokens."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed(self) -> Tensor:
        """[V] bool: tokens that may come next; only the end of the sequence once the grammar is complete.

        Raises GrammarError when the limits of the parser are reached.
        """
        packed = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        if self._matcher.is_error():
            raise GrammarError(_reason(self._matcher))
        return ((packed[:, None] >> _BITS) & 1).bool().flatten()[: self._vocab_size]

    def accept(self, token: int) -> None:
        """Moves on by one token that `allowed` allowed. Raises GrammarError."""
        if not self._matcher.consume_token(token):
            raise GrammarError(_reason(self._matcher))


class Grammars:
    """Makes matchers for one model. The tokenizer's table (about half a second) is made at the first grammar."""

    def __init__(self, folder: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._folder = folder
        self._vocab_size = vocab_size
        self._eos = list(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None

    def open(self, grammar: str) -> Matcher:
        """A matcher at the grammar's beginning. Raises GrammarError."""
        if not self._eos:
            raise GrammarError("structured output needs a model with an end-of-sequence token; this one names none")
        if self._tokenizer is None:
            path = str(self._folder / "tokenizer.json")
            self._tokenizer = LLTokenizer(path, n_vocab=self._vocab_size, eos_token=self._eos)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise GrammarError(_reason(matcher))
        return Matcher(matcher, self._vocab_size)


def _reason(matcher: LLMatcher) -> str:
    """The error without the dump of the parser's state that follows it."""
    return matcher.get_error().partition("\n")[0]
