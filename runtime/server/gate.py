"""What every request passes before a route sees it: the key, readiness, the size of the body."""

from __future__ import annotations

import re
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.server.auth import KeyRing
from runtime.server.engine_client import ClientGoneError
from runtime.server.errors import ApiError, not_ready
from runtime.server.metrics import Metrics
from runtime.server.pages import PATHS
from runtime.server.request_log import RECORD, RequestLog
from runtime.server.status import Readiness

OPEN_PATHS = frozenset({"/health", *PATHS})  # answered without a key
KEY = "deployctl.key"  # where the matched ApiKey stands in the ASGI scope
REQUEST_ID = "deployctl.request_id"  # and the request's id: the client's X-Request-Id, or a random one
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_TOKENIZER_PATHS = frozenset({"/tokenize", "/detokenize"})


class Gate:
    """Pure ASGI middleware, so that a stream's chunks pass untouched. Unknown paths need a key too."""

    def __init__(
        self, app: ASGIApp, *, keys: KeyRing, readiness: Readiness, metrics: Metrics, log: RequestLog, max_body: int
    ) -> None:
        self._app = app
        self._keys = keys
        self._readiness = readiness
        self._metrics = metrics
        self._log = log
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        scope[REQUEST_ID] = given.decode() if _ID.fullmatch(given) else secrets.token_hex(12)
        answer = _named(send, scope[REQUEST_ID])
        if not self._log.is_on:
            await self._answer(scope, receive, answer, headers)
            return
        scope[RECORD] = record = self._log.begin()
        try:
            await self._answer(scope, receive, record.watched(answer), headers)
        finally:
            if (key := scope.get(KEY)) is not None:
                self._log.end(record, scope, scope[REQUEST_ID], key.name)

    async def _answer(self, scope: Scope, receive: Receive, answer: Send, headers: dict[bytes, bytes]) -> None:
        body = self._measured(receive)
        try:
            self._check(scope, headers)
            if needs_engine(scope["path"]):
                body = await self._readiness.hold.pass_through(body, self._readiness.unready)
                self._check_ready(scope["path"])
        except ClientGoneError:
            return
        except ApiError as error:
            self._metrics.refused[str(error.status_code)] += 1
            await error.response()(scope, receive, answer)
            return
        await self._app(scope, body, answer)

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        key = self._keys.match(headers.get(b"authorization", b"").decode("latin-1"))
        if key is None:
            raise ApiError(
                401,
                "this endpoint needs a valid API key: send the header Authorization: Bearer <key>",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        scope[KEY] = key
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._max_body:
            raise self._too_large()

    def _check_ready(self, path: str) -> None:
        if path.startswith("/v1/") and (unready := self._readiness.unready()) is not None:
            raise not_ready(unready)

    def _measured(self, receive: Receive) -> Receive:
        """Counts a body that comes without, or beyond, its content-length."""
        size = 0

        async def counting() -> Message:
            nonlocal size
            message = await receive()
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                if size > self._max_body:
                    raise self._too_large()
            return message

        return counting

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is over the limit of {self._max_body} bytes", code="body_too_large")


def needs_engine(path: str) -> bool:
    """Whether a request waits while a release takes over."""
    return path.startswith("/v1/") or path in _TOKENIZER_PATHS


def _named(send: Send, request_id: str) -> Send:
    """Adds the request's id to the head of the answer."""
    header = (b"x-request-id", request_id.encode())

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), header]
        await send(message)

    return sending
