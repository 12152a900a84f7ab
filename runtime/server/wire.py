"""The JSON of answers: whole ones from structs, stream chunks from parts that are encoded once per request.

A chunk is `head + index + … + encoded text + … + tail`: one JSON string is encoded per token, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from runtime.server.logprobs import ChatLogprob, ChatLogprobs, TextLogprobs, as_text_logprobs
from runtime.server.output_parser import CallDelta

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.encode


class CachedTokens(msgspec.Struct, frozen=True):
    """How many of the prompt's tokens were not computed again."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens of all choices; a prompt counts once, however many choices continue it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Choice(msgspec.Struct, frozen=True):
    """What one generation came to. `logprobs`: None where they were not asked for; `echoed`: characters of `text` that
    are the prompt's."""

    index: int
    text: str
    finish_reason: str
    logprobs: list[ChatLogprob] | None = None
    echoed: int = 0
    reasoning: str = ""
    calls: Sequence[CallDelta] = ()


class Delta(msgspec.Struct, frozen=True):
    """What one step adds to one choice. `offset`: characters of the choice that came before its tokens."""

    index: int
    text: str
    finish_reason: str | None
    first: bool
    logprobs: list[ChatLogprob]
    offset: int = 0
    reasoning: str = ""
    calls: Sequence[CallDelta] = ()


class AnswerFunction(msgspec.Struct, frozen=True):
    """Name and arguments (JSON text) of a call."""

    name: str
    arguments: str


class AnswerToolCall(msgspec.Struct, frozen=True):
    """One entry of `tool_calls`."""

    id: str
    function: AnswerFunction
    type: str = "function"


class AnswerMessage(msgspec.Struct, frozen=True):
    """`reasoning_content` is DeepSeek's name for the thoughts, `reasoning` vLLM's newer one: clients read either."""

    role: str
    content: str | None
    refusal: None = None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[AnswerToolCall] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """One choice of a chat's answer."""

    index: int
    message: AnswerMessage
    finish_reason: str
    logprobs: ChatLogprobs | None = None


class ChatAnswer(msgspec.Struct, frozen=True):
    """Answer of `/v1/chat/completions`."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(msgspec.Struct, frozen=True):
    """One choice of a completion's answer."""

    index: int
    text: str
    finish_reason: str
    logprobs: TextLogprobs | None = None


class TextAnswer(msgspec.Struct, frozen=True):
    """Answer of `/v1/completions`."""

    id: str
    object: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class Format(Protocol):
    """How one endpoint writes its answers. `created`: seconds since the epoch."""

    def chunk(self, delta: Delta) -> bytes:
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

    def chunk(self, delta: Delta) -> bytes:
        start = b"%b%d" % (self._head, delta.index)
        events = b""
        if delta.first:
            role = b',"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
            events = start + role + self._tail
        if delta.reasoning:
            thought = _encode(delta.reasoning)
            body = b',"delta":{"reasoning_content":%b,"reasoning":%b},"logprobs":null,"finish_reason":null}]'
            events += start + body % (thought, thought) + self._tail
        if delta.text or delta.logprobs:
            logprobs = _encode(ChatLogprobs(delta.logprobs)) if delta.logprobs else b"null"
            said = (_encode(delta.text), logprobs)
            events += start + b',"delta":{"content":%b},"logprobs":%b,"finish_reason":null}]' % said + self._tail
        if delta.calls:
            calls = _encode([_call_delta(call) for call in delta.calls])
            events += start + b',"delta":{"tool_calls":%b},"logprobs":null,"finish_reason":null}]' % calls + self._tail
        if delta.finish_reason is not None:
            end = b',"delta":{},"logprobs":null,"finish_reason":%b}]' % _encode(delta.finish_reason)
            events += start + end + self._tail
        return events

    def usage(self, usage: Usage) -> bytes:
        return _usage_event(self._head, usage) if self._include_usage else b""

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        listed = [
            ChatChoice(
                c.index,
                _message(c),
                c.finish_reason,
                None if c.logprobs is None else ChatLogprobs(c.logprobs),
            )
            for c in choices
        ]
        return _encode(ChatAnswer(self._id, "chat.completion", self._created, self._model, listed, usage))


def _message(choice: Choice) -> AnswerMessage:
    """Content is null where the model only called tools, as OpenAI has it."""
    indices = sorted({call.index for call in choice.calls})
    calls = [_whole_call([call for call in choice.calls if call.index == index]) for index in indices]
    return AnswerMessage(
        "assistant",
        content=choice.text if choice.text or not calls else None,
        reasoning_content=choice.reasoning or msgspec.UNSET,
        reasoning=choice.reasoning or msgspec.UNSET,
        tool_calls=calls or msgspec.UNSET,
    )


def _whole_call(pieces: Sequence[CallDelta]) -> AnswerToolCall:
    arguments = "".join(piece.arguments for piece in pieces)
    return AnswerToolCall(pieces[0].id or "", AnswerFunction(pieces[0].name or "", arguments))


def _call_delta(call: CallDelta) -> dict[str, object]:
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


class TextFormat:
    """`/v1/completions`: text chunks, the last of which carries the finish reason."""

    def __init__(self, request_id: str, created: int, model: str, include_usage: bool) -> None:
        self._id, self._created, self._model = f"cmpl-{request_id}", created, model
        self._include_usage = include_usage
        self._head = _head(self._id, "text_completion", created, model)
        self._tail = _tail(include_usage)

    def chunk(self, delta: Delta) -> bytes:
        if not delta.text and not delta.logprobs and delta.finish_reason is None:
            return b""
        logprobs = _encode(as_text_logprobs(delta.logprobs, delta.offset)) if delta.logprobs else b"null"
        said = (_encode(delta.text), logprobs, _encode(delta.finish_reason))
        content = b',"text":%b,"logprobs":%b,"finish_reason":%b}]' % said
        return b"%b%d%b%b" % (self._head, delta.index, content, self._tail)

    def usage(self, usage: Usage) -> bytes:
        return _usage_event(self._head, usage) if self._include_usage else b""

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        listed = [
            TextChoice(
                c.index,
                c.text,
                c.finish_reason,
                None if c.logprobs is None else as_text_logprobs(c.logprobs, c.echoed),
            )
            for c in choices
        ]
        return _encode(TextAnswer(self._id, "text_completion", self._created, self._model, listed, usage))


_CHOICES = b',"choices":[{"index":'


def _head(answer_id: str, kind: str, created: int, model: str) -> bytes:
    fields = _encode({"id": answer_id, "object": kind, "created": created, "model": model})
    return b"data: " + fields[:-1] + _CHOICES


def _tail(include_usage: bool) -> bytes:
    return b',"usage":null}\n\n' if include_usage else b"}\n\n"


def _usage_event(head: bytes, usage: Usage) -> bytes:
    return head.removesuffix(_CHOICES) + b',"choices":[],"usage":' + _encode(usage) + b"}\n\n"
