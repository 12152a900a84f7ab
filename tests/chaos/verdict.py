"""Is what came back right? Pure: a request, what was seen, and which parts of the machine were broken meanwhile."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.ask import Ask, Shape
from tests.chaos.client import Seen

HEALTH = "/health"
MOST_ERROR_BYTES = 4096
_NEEDS_RETRY_AFTER = (429, 503)
_LOST = {"engine_lost", "stopping"}  # codes of error events


class WrongError(Exception):
    """The answer breaks a promise; the text says which."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What was broken on purpose while the request was under way."""

    engine: bool = False
    server: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """Text and finish reason of each choice, in order."""

    choices: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    finish: str | None = None


def judge(ask: Ask, seen: Seen, trouble: Trouble) -> tuple[str, Answer | None]:
    """How the request ended, in a word for the report, and its answer where there is one. Raises WrongError."""
    if seen.hung:
        raise WrongError("no byte came for too long")
    if seen.left:
        return "left", None
    if seen.broken is not None:
        if trouble.server:
            return "cut off: server killed", None
        raise WrongError(f"the connection failed: {seen.broken}; status {seen.status}, {len(seen.body)} bytes")
    if seen.status == 200 and ask.is_generation:
        return _generated(ask, seen, trouble)
    if seen.status == 200:
        _check_expected(ask, seen, trouble)
        return "answered", None
    if ask.path == HEALTH:
        _check_health(seen)
    else:
        _check_envelope(seen)
    _check_expected(ask, seen, trouble)
    return f"refused {seen.status}", None


def _check_expected(ask: Ask, seen: Seen, trouble: Trouble) -> None:
    allowed = set(ask.statuses)
    if trouble.engine or trouble.server:
        allowed.add(503)
    if ask.is_generation:
        allowed.add(429)  # a flood may fill the queue for others
    if seen.status not in allowed:
        raise WrongError(f"status {seen.status}, expected {sorted(allowed)}: {bytes(seen.body[:300])!r}")


def _check_envelope(seen: Seen) -> None:
    if len(seen.body) > MOST_ERROR_BYTES:
        raise WrongError(f"an error of {len(seen.body)} bytes")
    try:
        error = json.loads(seen.body)["error"]
    except (ValueError, KeyError, TypeError):
        raise WrongError(f"status {seen.status} without an envelope: {bytes(seen.body[:300])!r}") from None
    _check_error(error)
    if seen.status in _NEEDS_RETRY_AFTER and not seen.headers.get("retry-after", "").isdecimal():
        raise WrongError(f"status {seen.status} without Retry-After")


def _check_health(seen: Seen) -> None:
    """Its 503 says how far the machine is, and is no envelope."""
    if not {"phase", "percent", "eta_s", "error", "hint"} <= set(json.loads(seen.body)):
        raise WrongError(f"/health says {bytes(seen.body[:300])!r}")
    if not seen.headers.get("retry-after", "").isdecimal():
        raise WrongError("/health says 503 without Retry-After")


def _check_error(error: Any) -> None:
    if not (isinstance(error, dict) and isinstance(error.get("message"), str) and error["message"]):
        raise WrongError(f"an error without a message: {error!r}")
    if not {"message", "type", "param", "code"} <= set(error):
        raise WrongError(f"an error without the fields of the envelope: {error!r}")


def _generated(ask: Ask, seen: Seen, trouble: Trouble) -> tuple[str, Answer | None]:
    try:
        choices, usage, lost = _streamed(ask, seen) if ask.stream else _whole(ask, seen)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise WrongError(f"an answer that cannot be read: {error!r}: {bytes(seen.body[-300:])!r}") from error
    if lost is not None:
        if not trouble.engine and not trouble.server:
            raise WrongError(f"an error event though nothing was broken: {lost}")
        if lost["code"] not in _LOST:
            raise WrongError(f"an error event of another kind: {lost}")
        return "error event", None
    answer = Answer(tuple(_finished(ask, index, choices.get(index)) for index in range(ask.choices)))
    if set(choices) - set(range(ask.choices)):
        raise WrongError(f"choices {sorted(choices)} of {ask.choices}")
    if usage is not None and not 0 < usage["completion_tokens"] <= ask.max_tokens * ask.choices:
        raise WrongError(f"{usage['completion_tokens']} tokens of {ask.choices} choices of {ask.max_tokens}")
    return "answered", answer


def _finished(ask: Ask, index: int, choice: _Choice | None) -> tuple[str, str]:
    if choice is None or choice.finish not in ("stop", "length"):
        raise WrongError(f"choice {index} has no end: {choice}")
    text = "".join(choice.text)
    for stop in ask.stops:
        if stop in text:
            raise WrongError(f"choice {index} shows the stop string {stop!r}: {text!r}")
    if ask.shape is not None and choice.finish == "stop" and not _fits(ask.shape, text):
        raise WrongError(f"choice {index} is not in the form that was asked for: {text!r}")
    return text, choice.finish


def _fits(shape: Shape, text: str) -> bool:
    if shape.is_json:
        try:
            return isinstance(json.loads(text), dict)
        except ValueError:
            return False
    if shape.regex is not None:
        return re.fullmatch(shape.regex, text) is not None
    return text in shape.choices


def _whole(ask: Ask, seen: Seen) -> tuple[dict[int, _Choice], dict[str, int], None]:
    body = json.loads(seen.body)
    choices = {}
    for choice in body["choices"]:
        text = choice["message"]["content"] if ask.form == "chat" else choice["text"]
        choices[choice["index"]] = _Choice([text], choice["finish_reason"])
    return choices, body["usage"], None


def _streamed(ask: Ask, seen: Seen) -> tuple[dict[int, _Choice], dict[str, int] | None, dict[str, Any] | None]:
    """(choices, usage, error that ended it)."""
    choices: dict[int, _Choice] = {}
    usage: dict[str, int] | None = None
    events = seen.events
    for event in map(json.loads, _until_done(events)):
        if "error" in event:
            _check_error(event["error"])
            if json.loads(events[-1]) != event:
                raise WrongError("events after an error event")
            return choices, usage, event["error"]
        if event.get("usage") is not None:
            usage = event["usage"]
        for choice in event["choices"]:
            known = choices.setdefault(choice["index"], _Choice())
            if known.finish is not None:
                raise WrongError(f"choice {choice['index']} goes on after its end")
            text = choice["delta"].get("content") if ask.form == "chat" else choice["text"]
            known.text.append(text or "")
            known.finish = choice["finish_reason"]
    if events[-1] != "[DONE]":
        raise WrongError(f"the stream has no end; its last event: {events[-1]!r}")
    if ask.usage and usage is None:
        raise WrongError("usage was asked for and did not come")
    return choices, usage, None


def _until_done(events: list[str]) -> Iterator[str]:
    for event in events:
        if event == "[DONE]":
            return
        yield event
