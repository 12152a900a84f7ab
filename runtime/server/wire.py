"""The JSON of answers: whole ones from structs, stream chunks from parts that are encoded once per request.

A chunk is `head + index + … + encoded text + … + tail`: one JSON string is encoded per token, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.encode


class CachedTokens(msgspec.Struct, frozen=True):
    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens of all choices; the prompt of each counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Choice(msgspec.Struct, frozen=True):
    """What one generation came to."""

    index: int
    text: str
    finish_reason: str


class _Message(msgspec.Struct, frozen=True):
    role: str
    content: str
    refusal: None = None


class _ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: _Message
    finish_reason: str
    logprobs: None = None


class _ChatAnswer(msgspec.Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    choices: list[_ChatChoice]
    usage: Usage


class _TextChoice(msgspec.Struct, frozen=True):
    index: int
    text: str
    finish_reason: str
    logprobs: None = None


class _TextAnswer(msgspec.Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    choices: list[_TextChoice]
    usage: Usage


class Format(Protocol):
    """How one endpoint writes its answers. `created`: seconds since the epoch."""

    def chunk(self, index: int, text: str, finish: str | None, *, first: bool) -> bytes:
        """Server-sent events of one step of one choice; empty when there is nothing to say."""

    def usage(self, usage: Usage) -> bytes:
        """The event with the token counts, where the client asked for it."""

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """The answer of a request without `stream`."""


def usage_of(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> Usage:
    """Token counts with their sum."""
    return Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens, CachedTokens(cached_tokens))


class ChatFormat:
    """`/v1/chat/completions`: a role chunk, content deltas, an empty delta with the finish reason."""

    def __init__(self, request_id: str, created: int, model: str, include_usage: bool) -> None:
        self._id, self._created, self._model = f"chatcmpl-{request_id}", created, model
        self._include_usage = include_usage
        self._head = _head(self._id, "chat.completion.chunk", created, model)
        self._tail = _tail(include_usage)

    def chunk(self, index: int, text: str, finish: str | None, *, first: bool) -> bytes:
        start = b"%b%d" % (self._head, index)
        events = b""
        if first:
            role = b',"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
            events = start + role + self._tail
        if text:
            content = b',"delta":{"content":%b},"logprobs":null,"finish_reason":null}]' % _encode(text)
            events += start + content + self._tail
        if finish is not None:
            end = b',"delta":{},"logprobs":null,"finish_reason":%b}]' % _encode(finish)
            events += start + end + self._tail
        return events

    def usage(self, usage: Usage) -> bytes:
        return _usage_event(self._head, usage) if self._include_usage else b""

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        listed = [_ChatChoice(c.index, _Message("assistant", c.text), c.finish_reason) for c in choices]
        return _encode(_ChatAnswer(self._id, "chat.completion", self._created, self._model, listed, usage))


class TextFormat:
    """`/v1/completions`: text chunks, the last of which carries the finish reason."""

    def __init__(self, request_id: str, created: int, model: str, include_usage: bool) -> None:
        self._id, self._created, self._model = f"cmpl-{request_id}", created, model
        self._include_usage = include_usage
        self._head = _head(self._id, "text_completion", created, model)
        self._tail = _tail(include_usage)

    def chunk(self, index: int, text: str, finish: str | None, *, first: bool) -> bytes:
        if not text and finish is None:
            return b""
        reason = b"null" if finish is None else _encode(finish)
        content = b',"text":%b,"logprobs":null,"finish_reason":%b}]' % (_encode(text), reason)
        return b"%b%d%b%b" % (self._head, index, content, self._tail)

    def usage(self, usage: Usage) -> bytes:
        return _usage_event(self._head, usage) if self._include_usage else b""

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        listed = [_TextChoice(c.index, c.text, c.finish_reason) for c in choices]
        return _encode(_TextAnswer(self._id, "text_completion", self._created, self._model, listed, usage))


_CHOICES = b',"choices":[{"index":'


def _head(answer_id: str, kind: str, created: int, model: str) -> bytes:
    fields = _encode({"id": answer_id, "object": kind, "created": created, "model": model})
    return b"data: " + fields[:-1] + _CHOICES


def _tail(include_usage: bool) -> bytes:
    return b',"usage":null}\n\n' if include_usage else b"}\n\n"


def _usage_event(head: bytes, usage: Usage) -> bytes:
    return head.removesuffix(_CHOICES) + b',"choices":[],"usage":' + _encode(usage) + b"}\n\n"
