"""One request of the chaos program: what is sent, when its client leaves, and which answers are right."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from tests.chaos.setting import SECRETS

Form = Literal["text", "chat", "other"]
OK = frozenset({200})


@dataclass(frozen=True, slots=True)
class Leave:
    """When the client goes away: after a share of the body, a number of events, or some seconds."""

    of_body: float | None = None
    events: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """What a finished answer must be: JSON, a match of an expression, or one of some texts."""

    is_json: bool = False
    regex: str | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """`statuses`: those that are right while nothing is broken. `raw`: sent as it is, instead of a proper request.

    `together`: how many of this request are sent at once.
    """

    number: int
    kind: str
    method: str = "GET"
    path: str = "/"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    raw: bytes | None = None
    chunked: bool = False
    statuses: frozenset[int] = OK
    form: Form = "other"
    stream: bool = False
    usage: bool = False
    choices: int = 0
    max_tokens: int = 0
    stops: tuple[str, ...] = ()
    shape: Shape | None = None
    leave: Leave | None = None
    repeatable: bool = False  # the same request gives the same answer
    together: int = 1

    @property
    def is_generation(self) -> bool:
        return self.choices > 0


def authorized(secret: str = SECRETS["main"]) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {secret}"), ("content-type", "application/json"))


def whole(ask: Ask) -> Ask:
    """The same request in one piece and by a patient client."""
    body: dict[str, Any] = json.loads(ask.body)
    body.pop("stream", None)
    body.pop("stream_options", None)
    return replace(ask, body=encode(body), stream=False, usage=False, leave=None)


def encode(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()
