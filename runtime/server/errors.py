"""Every failure that a client sees, in the OpenAI error envelope.

    {"error": {"message", "type", "param", "code"}}

Text that a client sent never comes back at any length: at most `MAX_ERRORS` errors of `MAX_TEXT` characters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import HTTPException, Response

MAX_ERRORS = 10
MAX_TEXT = 200  # characters of one error
MAX_MESSAGE = 2400  # of all together, with their paths

INVALID = "invalid_request_error"
RATE_LIMIT = "rate_limit_error"
SERVER = "server_error"


class Unready(msgspec.Struct, frozen=True):
    """Why the endpoint does not serve now: the fields of a 503. `percent` 0…100, `eta_s` seconds."""

    phase: str
    percent: float | None = None
    eta_s: float | None = None
    error: str | None = None
    hint: str | None = None

    @property
    def message(self) -> str:
        """One sentence for people."""
        if self.error is not None:
            return f"not ready ({self.phase}): {self.error}" + (f" | hint: {self.hint}" if self.hint else "")
        percent = "" if self.percent is None else f" {self.percent:.0f} %"
        eta = "" if self.eta_s is None else f", about {self.eta_s:.0f} s left"
        return f"not ready: phase {self.phase}{percent}{eta}; try again"

    @property
    def retry_after_s(self) -> int:
        """Seconds for `Retry-After`: the estimate where there is one, kept between 1 and 30."""
        return 2 if self.eta_s is None else max(1, min(30, round(self.eta_s)))


class ErrorDetail(msgspec.Struct, frozen=True):
    """The inside of the envelope."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Envelope(msgspec.Struct, frozen=True):
    """An error body."""

    error: ErrorDetail


class UnreadyEnvelope(msgspec.Struct, frozen=True):
    """An error body of a 503: the envelope, and beside it how far the machine is.

    `error` is the envelope here, so the text of `Unready.error` stands in its message.
    """

    error: ErrorDetail
    phase: str
    percent: float | None
    eta_s: float | None
    hint: str | None


class ApiError(HTTPException):
    """A request that fails. It is an HTTPException so that FastAPI lets it through from everywhere."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = INVALID,
        headers: Mapping[str, str] | None = None,
        unready: Unready | None = None,
    ) -> None:
        super().__init__(status, detail=message, headers=dict(headers or {}))
        self.error = ErrorDetail(
            well_formed(message[:MAX_MESSAGE]), kind, None if param is None else bounded(param), code
        )
        self.unready = unready

    def body(self) -> bytes:
        """JSON of the envelope."""
        if self.unready is None:
            return msgspec.json.encode(Envelope(self.error))
        u = self.unready
        return msgspec.json.encode(UnreadyEnvelope(self.error, u.phase, u.percent, u.eta_s, u.hint))

    def response(self) -> Response:
        """The whole HTTP answer."""
        return Response(self.body(), self.status_code, dict(self.headers or {}), "application/json")


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400 that names the field."""
    return ApiError(400, message, param=param, code=code)


def not_ready(unready: Unready) -> ApiError:
    """A 503 with how far the machine is."""
    return ApiError(
        503,
        unready.message,
        code="not_ready",
        kind=SERVER,
        headers={"Retry-After": str(unready.retry_after_s)},
        unready=unready,
    )


def engine_lost(message: str) -> ApiError:
    """A 503 for a request that was running when the engine went away."""
    return ApiError(503, message, code="engine_lost", kind=SERVER, headers={"Retry-After": "2"})


def overloaded(message: str) -> ApiError:
    """A 429: the queue is full."""
    return ApiError(429, message, code="rate_limit_exceeded", kind=RATE_LIMIT, headers={"Retry-After": "1"})


def from_status(status: int, headers: Mapping[str, str] | None) -> ApiError:
    """What the framework itself refuses: unknown path, wrong method, a body that is no JSON."""
    messages = {
        400: "the body cannot be read as JSON",
        404: "this path is not served here; /v1/chat/completions, /v1/completions and /v1/models are",
        405: "this path does not take this method",
    }
    kind = SERVER if status >= 500 else INVALID
    return ApiError(status, messages.get(status, HTTPStatus(status).phrase.lower()), kind=kind, headers=headers)


def from_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """pydantic's errors as one 400; `param` is the first one's field."""
    lines = [_line(error) for error in errors[:MAX_ERRORS]]
    if (more := len(errors) - MAX_ERRORS) > 0:
        lines.append(f"and {more} more")
    return invalid("; ".join(lines), _path(errors[0]) or None)


def bounded(text: str) -> str:
    """At most `MAX_TEXT` characters that JSON can carry."""
    cut = text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
    return well_formed(cut)


def well_formed(text: str) -> str:
    """Lone surrogates, which JSON may bring in but UTF-8 cannot carry out, as question marks."""
    return text.encode("utf-8", "replace").decode()


def _line(error: Mapping[str, Any]) -> str:
    if error["type"] == "json_invalid":
        return f"the body is not JSON: {bounded(str(error['ctx']['error']))} at character {error['loc'][-1]}"
    path = _path(error)
    if error["type"] == "extra_forbidden":
        return f"{path}: this server does not know the field; remove it"
    if error["type"] == "missing" and not path:
        return "the body is empty; send JSON with content-type application/json"
    return bounded(f"{path}: {error['msg']}" if path else str(error["msg"]))


def _path(error: Mapping[str, Any]) -> str:
    """("body", "messages", 0, "role") → "messages[0].role"."""
    if error["type"] == "json_invalid":
        return ""
    path = ""
    for part in error["loc"][1:]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return bounded(path)
