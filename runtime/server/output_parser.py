"""What a chat model wrote, told apart while it streams: thoughts, text, and calls of tools.

    <think> thoughts </think> text <tool_call> {"name": …, "arguments": {…}} </tool_call> text …

Markers are recognized across the borders of chunks; text that may still become one is held back. What looks like a call
and is none comes out as the text that it was: nothing is lost.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from typing import Literal

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
ToolFormat = Literal["hermes", "llama3"]

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"((?:[^"\\]|\\.)*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=[{\[])')
_LONGEST_HEAD = 1024  # characters: what is no call by then is looked at once more at its end only
_JSON = json.JSONDecoder()
_BETWEEN = " \t\r\n;"  # how Llama 3 sets calls apart
_State = Literal["start", "thinking", "text", "call", "between"]


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of one call. `id` and `name` come with its first piece; `arguments` is a piece of JSON text."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(slots=True)
class Parsed:
    """What one piece of output came to."""

    text: str = ""
    reasoning: str = ""
    calls: list[CallDelta] | None = None

    def add_calls(self, found: list[CallDelta]) -> None:
        if found:
            self.calls = [*(self.calls or []), *found]


class OutputParser:
    """State of one chat answer.

    `thinks`: the model marks its thoughts; `in_thought`: the prompt has opened them already. `tools`: how the model
    writes calls, None when it was offered none. `one_call`: further calls are dropped.
    """

    def __init__(
        self, *, thinks: bool, in_thought: bool = False, tools: ToolFormat | None = None, one_call: bool = False
    ) -> None:
        self._state: _State = "thinking" if thinks and in_thought else "start"
        self._thinks = thinks
        self._tools = tools
        self._one_call = one_call
        self._held = ""
        self._call = _CallScanner(0)
        self._calls = 0
        self._strip = thinks and in_thought  # white space at the beginning of a part is layout

    @property
    def called(self) -> bool:
        """At least one call has begun."""
        return self._calls > 0

    def feed(self, text: str) -> Parsed:
        """Takes the next piece."""
        parsed = Parsed()
        self._held += text
        while self._step(parsed):
            pass
        return parsed

    def flush(self) -> Parsed:
        """The output is complete: what was held is what it seems to be."""
        parsed = Parsed()
        held, self._held = self._held, ""
        match self._state:
            case "thinking":
                parsed.reasoning = held
            case "call":
                self._end_call(parsed, held, complete=self._tools == "llama3")
            case "between":
                pass
            case _:
                parsed.text = held
        return parsed

    def _step(self, parsed: Parsed) -> bool:
        """One move of the state machine over what is held; False when more input is needed."""
        match self._state:
            case "start":
                return self._start()
            case "thinking":
                return self._until(END_THINK, parsed)
            case "text":
                if self._tools == "hermes":
                    return self._until(CALL, parsed)
                self._say(parsed, self._held)
                self._held = ""
                return False
            case "call":
                return self._follow_call(parsed)
            case "between":
                return self._go_on()

    def _start(self) -> bool:
        """Decides, from the first characters that are no white space, how the answer begins."""
        begin = self._held.lstrip()
        if not begin:
            return False
        if self._thinks and THINK.startswith(begin[: len(THINK)]):
            if len(begin) < len(THINK):
                return False
            self._held = begin[len(THINK) :]
            self._state, self._strip = "thinking", True
        elif self._tools == "llama3" and begin[0] == "{":
            self._held, self._state = begin, "call"
        else:
            self._state = "text"
        return True

    def _until(self, marker: str, parsed: Parsed) -> bool:
        """Passes text on up to `marker`, and changes the state after it."""
        before, found, after = self._held.partition(marker)
        if not found:
            keep = _overlap(before, marker)
            if marker == CALL:  # the line break before a call is layout
                keep = max(keep, len(before) - len(before[: len(before) - keep].rstrip()))
            elif marker == END_THINK:
                keep = max(keep, len(before) - len(before[: len(before) - keep].rstrip("\n")))
            self._say(parsed, before[: len(before) - keep])
            self._held = before[len(before) - keep :]
            return False
        self._say(parsed, before.rstrip() if marker == CALL else before.rstrip("\n"))
        self._held = after
        self._strip = True
        if marker == END_THINK:
            self._state = "text"
        else:
            self._state, self._call = "call", _CallScanner(self._calls)
        return True

    def _say(self, parsed: Parsed, text: str) -> None:
        if self._strip:
            text = text.lstrip()
            self._strip = not text
        if self._state == "thinking":
            parsed.reasoning += text
        else:
            parsed.text += text

    def _follow_call(self, parsed: Parsed) -> bool:
        """The inside of a call up to its end marker; calls of Llama 3 end with their last bracket."""
        if self._tools == "llama3":
            piece, self._held = self._held, ""
            self._take(parsed, piece)
            if (rest := self._call.rest()) is None:
                return False
            self._held, self._state = rest, "between"
            return True
        before, found, after = self._held.partition(END_CALL)
        if not found:
            keep = _overlap(before, END_CALL)
            self._take(parsed, before[: len(before) - keep])
            self._held = before[len(before) - keep :]
            return False
        self._end_call(parsed, before, complete=True)
        self._held, self._state, self._strip = after, "text", True
        return True

    def _go_on(self) -> bool:
        """After a call of Llama 3: the next one, or text."""
        begin = self._held.lstrip(_BETWEEN)
        if not begin:
            return False
        if begin[0] == "{":
            self._held, self._state, self._call = begin, "call", _CallScanner(self._calls)
        else:
            self._state, self._strip = "text", True
        return True

    def _take(self, parsed: Parsed, piece: str) -> None:
        deltas = self._call.feed(piece)
        if deltas and self._calls == self._call.index:
            self._calls += 1
        if not (self._one_call and self._call.index > 0):
            parsed.add_calls(deltas)

    def _end_call(self, parsed: Parsed, last: str, *, complete: bool) -> None:
        self._take(parsed, last)
        if self._call.begun:
            return
        whole = self._call.whole() if complete else None
        if whole is None:
            opened, closed = (CALL, END_CALL if complete else "") if self._tools == "hermes" else ("", "")
            parsed.text += opened + self._call.text + closed
        elif not (self._one_call and self._call.index > 0):
            self._calls += 1
            parsed.add_calls([whole])


class _CallScanner:
    """One call's JSON while it arrives.

    {"name": "f", "arguments": {…}}
    ╰──── _HEAD ─────────────╯╰ passed on as it comes, until its brackets balance
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.text = ""
        self.begun = False
        self._at = 0
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._done = False

    def feed(self, piece: str) -> list[CallDelta]:
        self.text += piece
        found: list[CallDelta] = []
        if not self.begun:
            head = _HEAD.match(self.text) if len(self.text) - len(piece) <= _LONGEST_HEAD else None
            if head is None:
                return []
            self.begun, self._at = True, head.end()
            name = json.loads(f'"{head.group(1)}"')
            found.append(CallDelta(self.index, "", new_call_id(), name))
        if arguments := self._scan():
            found.append(CallDelta(self.index, arguments))
        return found

    def whole(self) -> CallDelta | None:
        """The call from text whose members came in another order; None when it is no call."""
        try:
            call = json.loads(self.text)
            name, arguments = call["name"], call.get("arguments", call.get("parameters", {}))
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        if not isinstance(name, str):
            return None
        written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return CallDelta(self.index, written, new_call_id(), name)

    def rest(self) -> str | None:
        """What follows the call's object; None before its end."""
        if not self._done:
            return None
        try:
            _, end = _JSON.raw_decode(self.text)
        except ValueError:
            return None
        return self.text[end:]

    def _scan(self) -> str:
        """The part of the arguments that is new."""
        begin = self._at
        while self._at < len(self.text) and not self._done:
            character = self.text[self._at]
            self._at += 1
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                self._done = self._depth == 0
        return self.text[begin : self._at]


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that is a beginning of `marker`."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
