"""One prompt's output while it grows: tokens in, text that may be shown out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec

from runtime.ipc import Output
from runtime.server.detokenizer import Detokenizer
from runtime.server.errors import SERVER, ApiError
from runtime.server.logprobs import ChatLogprob, TokenTexts
from runtime.server.output_parser import CallDelta, OutputParser
from runtime.server.stop import StopMatcher


class Piece(msgspec.Struct, frozen=True):
    """What one output adds to a choice: text that may be shown, log-probabilities where they were asked for, and what a
    chat model's thoughts and calls came to."""

    text: str
    logprobs: list[ChatLogprob]
    reasoning: str = ""
    calls: Sequence[CallDelta] = ()


def joined(pieces: Sequence[Piece]) -> Piece:
    """Pieces of one choice in a row as one."""
    if len(pieces) == 1:
        return pieces[0]
    calls: list[CallDelta] = []
    for call in (call for piece in pieces for call in piece.calls):
        if calls and calls[-1].index == call.index and call.id is None:
            calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + call.arguments)
        else:
            calls.append(call)
    return Piece(
        text="".join(piece.text for piece in pieces),
        logprobs=[entry for piece in pieces for entry in piece.logprobs],
        reasoning="".join(piece.reasoning for piece in pieces),
        calls=calls,
    )


@dataclass(slots=True)
class Generation:
    """State of one choice. Times are seconds of `time.monotonic()`."""

    index: int
    request_id: str
    prompt_tokens: int
    detokenizer: Detokenizer
    stops: StopMatcher | None
    min_tokens: int
    submitted_at: float
    texts: TokenTexts | None = None  # where log-probabilities were asked for
    echo: str = ""  # the prompt, to stand before the output
    parser: OutputParser | None = None  # of a chat model that marks thoughts or calls
    kept: list[str] | None = None  # all text so far, where the request log shows it
    completion_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: str | None = None
    first_at: float | None = None
    last_at: float = field(init=False)
    offset: int = field(init=False)  # characters before the next token, as log-probabilities count them

    def __post_init__(self) -> None:
        self.last_at = self.submitted_at
        self.offset = len(self.echo)

    def feed(self, output: Output) -> Piece:
        """What may be shown now.

        Sets `finish_reason` at the end, which a stop string may bring before the engine does. Raises ApiError
        when the engine failed the request.
        """
        if output.finish in ("error", "abort"):
            reason = output.error or "the engine gave the request up"
            raise ApiError(500, f"the request failed in the engine: {reason}", code="engine_error", kind=SERVER)
        shown: list[str] = []
        if self.completion_tokens == 0:
            self.cached_tokens = output.cached_tokens
            shown.append(self.echo)
        hidden = len(output.tokens) - 1 if output.stopped_by_token else -1
        logprobs: list[ChatLogprob] = []
        for position, token in enumerate(output.tokens):
            self.completion_tokens += 1
            if position != hidden:
                shown.append(self._show(self.detokenizer.step(token)))
                if self.texts is not None and output.logprobs is not None:
                    logprobs.append(self.texts.describe(token, output.logprobs[position]))
            if self.stops is not None and self.stops.stopped:
                self.finish_reason = "stop"
                return self._piece("".join(shown), logprobs)
        if output.finish is not None:
            shown.append(self._show(self.detokenizer.flush()))
            self.finish_reason = output.finish
            if self.stops is not None:
                shown.append(self.stops.flush())
                if self.stops.stopped:
                    self.finish_reason = "stop"
        return self._piece("".join(shown), logprobs)

    def _piece(self, text: str, logprobs: list[ChatLogprob]) -> Piece:
        if self.kept is not None:
            self.kept.append(text)
        if self.parser is None:
            return Piece(text, logprobs)
        parsed = self.parser.feed(text)
        said, thought, calls = parsed.text, parsed.reasoning, parsed.calls or []
        if self.finish_reason is not None:
            rest = self.parser.flush()
            said, thought, calls = said + rest.text, thought + rest.reasoning, [*calls, *(rest.calls or [])]
            if self.parser.called and self.finish_reason == "stop":
                self.finish_reason = "tool_calls"
        return Piece(said, logprobs, thought, calls)

    def _show(self, text: str) -> str:
        # Text of the first `min_tokens` tokens cannot stop the output, so it does not pass the matcher.
        if self.stops is None or self.completion_tokens <= self.min_tokens:
            return text
        return self.stops.feed(text) if text else ""
