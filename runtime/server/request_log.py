"""The request log: one line of JSON per request in the server's log, for deployments that ask for it.

    {"time", "request_id", "key", "method", "route", "status", "model", "stream", "prompt_tokens", "cached_tokens",
     "completion_tokens", "finish_reasons", "first_token_s", "total_s"}

`redacted` tells who asked for how much and how long it took, never what was said. `full` adds the request as it was
sent and the model's words, each cut to `FULL_BYTES`. The key itself is never known here. Requests without a valid key
are not logged, so that nobody can fill a disk from outside; /metrics counts them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from logging.handlers import QueueListener
from queue import SimpleQueue
from typing import Any

import msgspec
from starlette.types import Message, Scope, Send

from runtime.deployment import RequestLogMode
from runtime.server.errors import bounded
from runtime.server.generation import Generation
from runtime.server.schema import GenerationBody

FULL_BYTES = 12 * 2**10  # of a request, and of all outputs: journald and the supervisor cut lines beyond 48 KiB
RECORD = "deployctl.record"  # where the request's Record stands in the ASGI scope
UNLOGGED = frozenset({"/metrics"})  # asked for every few seconds by machines


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is written. Durations in seconds; `status` None: the client left before there was one. A finish reason of
    None: that choice did not come to its end, because the client left or the engine was lost."""

    time: str
    request_id: str
    key: str
    method: str
    route: str
    status: int | None
    total_s: float
    model: str | None = None
    stream: bool | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reasons: list[str | None] | None = None
    first_token_s: float | None = None
    request: str | None = None
    outputs: list[str] | None = None


@dataclass(slots=True)
class Record:
    """One request while it goes on; times by `time.monotonic()`."""

    full: bool
    begun_at: float = field(default_factory=time.monotonic)
    status: int | None = None
    body: GenerationBody | None = None
    prompts: Sequence[Sequence[int]] = ()
    generations: Sequence[Generation] = ()

    def started(self, body: GenerationBody, prompts: Sequence[Sequence[int]]) -> None:
        """The request has been understood and goes to the engine."""
        self.body, self.prompts = body, prompts

    def ended(self, generations: Sequence[Generation]) -> None:
        """The engine works on it no more."""
        self.generations = generations

    def watched(self, send: Send) -> Send:
        """`send`, noting the status that goes out."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
            await send(message)

        return sending

    def line(self, request_id: str, key: str, method: str, route: str, now: datetime) -> Line:
        """What the log says of the request, over now."""
        body, generations = self.body, self.generations
        common = (now.isoformat(timespec="milliseconds"), request_id, key, method, route, self.status)
        total_s = _rounded(time.monotonic() - self.begun_at)
        if body is None:
            return Line(*common, total_s)
        firsts = [g.first_at for g in generations if g.first_at is not None]
        prompts = generations[:: max(1, len(generations) // max(1, len(self.prompts)))]
        return Line(
            *common,
            total_s,
            model=body.model,
            stream=bool(body.stream),
            prompt_tokens=sum(map(len, self.prompts)),
            cached_tokens=sum(g.cached_tokens for g in prompts),
            completion_tokens=sum(g.completion_tokens for g in generations),
            finish_reasons=[g.finish_reason for g in generations],
            first_token_s=_rounded(min(firsts) - self.begun_at) if firsts else None,
            request=_cut(_as_sent(body), FULL_BYTES) if self.full else None,
            outputs=_outputs(generations) if self.full else None,
        )


class RequestLog:
    """Makes records, and writes their lines from a thread of its own: a slow reader of the log holds no request up."""

    def __init__(self, mode: RequestLogMode) -> None:
        self._mode = mode
        self._lines: SimpleQueue[logging.LogRecord] = SimpleQueue()
        self._writer = QueueListener(self._lines, logging.StreamHandler())

    @property
    def is_on(self) -> bool:
        return self._mode != "off"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Lines are written while this is open; those that wait are, before it closes."""
        if not self.is_on:
            yield
            return
        self._writer.start()
        yield
        self._writer.stop()

    def begin(self) -> Record:
        return Record(full=self._mode == "full")

    def end(self, record: Record, scope: Scope, request_id: str, key: str) -> None:
        """Writes the line of a request."""
        if scope["path"] in UNLOGGED:
            return
        line = record.line(request_id, key, scope["method"], _route(scope), datetime.now(UTC))
        self._lines.put(logging.makeLogRecord({"msg": msgspec.json.encode(line).decode()}))


def _route(scope: Scope) -> str:
    """The route's path, not the client's text; that one only where there is no route."""
    route = scope.get("route")
    return str(route.path) if route is not None else bounded(scope["path"])


def _as_sent(body: GenerationBody) -> str:
    sent: Mapping[str, Any] = body.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return msgspec.json.encode(sent).decode()


def _outputs(generations: Sequence[Generation]) -> list[str]:
    share = FULL_BYTES // max(1, len(generations))
    return [_cut("".join(g.kept or ()), share) for g in generations]


def _cut(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8; "…" says that there was more."""
    data = text.encode("utf-8", "replace")
    return text if len(data) <= limit else data[:limit].decode("utf-8", "ignore") + "…"


def _rounded(seconds: float) -> float:
    return round(seconds, 4)
