"""Token ids to text, one request at a time, as the ids arrive.

Tokens become bytes and bytes become text, each once: work per token is constant. `tokenizers.DecodeStream` decodes all
that it holds back again for every token, so that an output of broken characters costs the square of its length, and it
loses whole characters beside them where bytes are tokens of their own.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from runtime.server.logprobs import TokenTexts

_new_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Incremental text of one output; special tokens are skipped.

        tokens   |..|...|.|....|        bytes of one character may lie in several tokens
        text     |......|  held         shown once its last byte is there

    The concatenation of all returned texts is the text of all bytes at once, with U+FFFD for what is no UTF-8.

    `context`: tokens of a prompt that the output continues; without one, a tokenizer that writes a space before
    the first word of a text has it taken away here.
    """

    __slots__ = ("_decoder", "_strip", "_texts")

    def __init__(self, texts: TokenTexts, context: Sequence[int] = ()) -> None:
        self._texts = texts
        self._decoder = _new_decoder("replace")
        self._strip = texts.strips_first_space and not any(map(texts.shown, context))

    def step(self, token: int) -> str:
        """The text that this token completes, often empty."""
        text = self._decoder.decode(self._texts.shown(token))
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text

    def flush(self) -> str:
        """The output is complete: bytes that never became a character, as U+FFFD."""
        return self._decoder.decode(b"", final=True)
