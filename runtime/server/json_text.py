"""JSON from clients, with a bound on its depth: what follows nesting by recursion never sees more of it."""

from __future__ import annotations

import json
import re
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from runtime.server.errors import ApiError, invalid
from runtime.server.limits import MAX_JSON_DEPTH

# Possessive, and with an end that may be missing: linear in the text, whatever it is.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))
_ALIKE = bytes.maketrans(b"{}", b"[]")


def is_too_deep(text: bytes) -> bool:
    """More than `MAX_JSON_DEPTH` arrays and objects inside each other. False for brackets that do not match: the parser
    says so. Takes time linear in the length."""
    if text.count(b"[") + text.count(b"{") <= MAX_JSON_DEPTH:
        return False
    left = _STRING.sub(b"", text).translate(_ALIKE, _OTHERS)
    for _ in range(MAX_JSON_DEPTH):  # each round takes the innermost level away
        inner, left = left, left.replace(b"[]", b"")
        if inner == left:
            return False
    return bool(left)


def parse_text(text: str, param: str) -> Any:
    """A value from JSON inside a field of the body. Raises ApiError 400."""
    if is_too_deep(text.encode("utf-8", "replace")):
        raise _too_deep(param)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise invalid("must be JSON text", param) from None


class BoundedRequest(Request):
    """A request whose body is read as JSON."""

    async def json(self) -> Any:
        """Raises ApiError 400 for nesting beyond the limit, ValueError or RecursionError for what is no JSON."""
        if is_too_deep(await self.body()):
            raise _too_deep(None)
        return await super().json()


class BoundedRoute(APIRoute):
    """Reads its body with BoundedRequest."""

    def get_route_handler(self) -> Any:
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            answer: Response = await handle(BoundedRequest(request.scope, request.receive))
            return answer

        return bounded


def _too_deep(param: str | None) -> ApiError:
    return invalid(f"the JSON is nested deeper than {MAX_JSON_DEPTH} levels", param, "json_too_deep")
