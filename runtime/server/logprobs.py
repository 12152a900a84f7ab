"""Log-probabilities as clients see them: tokens as text and bytes, in the forms of chat and of completions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import msgspec
from tokenizers import Tokenizer

from runtime.ipc import TokenLogprobs

LOWEST = -9999.0  # JSON has no minus infinity
_BYTE_TOKEN_LENGTH = len("<0xAB>")
_SPACE = "\u2581"  # SentencePiece writes spaces so


class Candidate(msgspec.Struct, frozen=True):
    """One token and its log-probability. `bytes` are UTF-8, of which a token may hold a part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(msgspec.Struct, frozen=True):
    """One entry of `logprobs.content`."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Candidate]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """`logprobs` of a chat choice."""

    content: list[ChatLogprob]
    refusal: None = None


class TextLogprobs(msgspec.Struct, frozen=True):
    """`logprobs` of a completion choice: four lists with one entry per token. Offsets in characters."""

    text_offset: list[int]
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class TokenTexts:
    """Bytes of single tokens of one tokenizer: byte-level, or SentencePiece's with ▁ for a space."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._added = {token: entry.content for token, entry in added.items()}
        self._special = {token for token, entry in added.items() if entry.special}
        self._is_byte_level = "ByteLevel" in repr(tokenizer.decoder)
        self._known: dict[int, bytes] = {}
        space = None if self._is_byte_level else tokenizer.token_to_id(_SPACE)
        self.strips_first_space = space is not None and tokenizer.decode([space, space]) == " "

    def shown(self, token: int) -> bytes:
        """What the token adds to an answer: nothing where it is a special one."""
        return b"" if token in self._special else self.bytes_of(token)

    def bytes_of(self, token: int) -> bytes:
        """What the token stands for, before bytes become characters; special tokens as they are written."""
        if (known := self._known.get(token)) is None:
            known = self._known[token] = self._bytes_of(token)
        return known

    def _bytes_of(self, token: int) -> bytes:
        if (added := self._added.get(token)) is not None:
            return added.encode()
        written = self._tokenizer.id_to_token(token)
        if written is None:
            return b""
        if self._is_byte_level:
            return bytes(_byte_of_character().get(character, 0x3F) for character in written)
        if len(written) == _BYTE_TOKEN_LENGTH and written.startswith("<0x") and written.endswith(">"):
            return bytes([int(written[3:5], 16)])
        return written.replace(_SPACE, " ").encode()

    def describe(self, token: int, found: TokenLogprobs) -> ChatLogprob:
        """The chosen token with its alternatives."""
        chosen = self._candidate(token, found.chosen)
        top = [self._candidate(other, value) for other, value in found.top]
        return ChatLogprob(chosen.token, chosen.logprob, chosen.bytes, top)

    def _candidate(self, token: int, logprob: float) -> Candidate:
        data = self.bytes_of(token)
        return Candidate(data.decode("utf-8", "replace"), max(logprob, LOWEST), list(data))


def as_text_logprobs(entries: Sequence[ChatLogprob], offset: int) -> TextLogprobs:
    """The form of `/v1/completions`; `offset`: characters of the choice before the first entry."""
    offsets: list[int] = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry.token)
    return TextLogprobs(
        text_offset=offsets,
        token_logprobs=[entry.logprob for entry in entries],
        tokens=[entry.token for entry in entries],
        top_logprobs=[
            {top.token: top.logprob for top in entry.top_logprobs} | {entry.token: entry.logprob} for entry in entries
        ],
    )


@lru_cache(1)
def _byte_of_character() -> dict[str, int]:
    """How byte-level BPE writes bytes: printable Latin-1 characters stand for themselves, the other bytes for the
    characters from U+0100 on, in order (Radford et al. 2019, GPT-2's encoder)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + at): byte for at, byte in enumerate(others)}
