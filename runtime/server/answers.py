"""Answers that are made in one place."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from fastapi import Response


def json_answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`value` as JSON, msgspec structs included."""
    return Response(msgspec.json.encode(value), status, headers, "application/json")
