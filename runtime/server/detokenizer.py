"""Token ids to text, one request at a time, as the ids arrive."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

CONTEXT = 6  # prompt tokens that decide how the first output token is written
_BROKEN = "\ufffd"  # what a decoder writes for bytes that are no UTF-8 (yet)


class Detokenizer:
    """Incremental text of one output; special tokens are skipped.

    A character whose bytes are spread over several tokens appears with its last token. The concatenation of
    all returned texts equals decoding all ids at once.

    `context`: the last ids of a prompt that the output continues; without it a decoder that strips the first
    word's space would strip it here.
    """

    __slots__ = ("_pending", "_stream", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._pending: list[int] = []
        ids = list(context[-CONTEXT:])
        # A context that ends inside a character would come out again together with the output.
        if ids and not tokenizer.decode(ids, skip_special_tokens=True).endswith(_BROKEN):
            self._stream.step(tokenizer, ids)

    def step(self, token: int) -> str:
        """The text that this token completes, often empty."""
        try:
            text = self._stream.step(self._tokenizer, token)
        except Exception:  # the stream lost its prefix (tokenizers raises a bare Exception): start it anew
            self._stream = DecodeStream(skip_special_tokens=True)
            text = self._stream.step(self._tokenizer, [*self._pending, token])
        if text is None:
            self._pending.append(token)
            return ""
        if self._pending:
            self._pending.clear()
        return text

    def flush(self) -> str:
        """The output is complete: bytes that never became a character, as U+FFFD."""
        pending, self._pending = self._pending, []
        return self._tokenizer.decode(pending, skip_special_tokens=True) if pending else ""
