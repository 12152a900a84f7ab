"""The OpenAPI document of this API: requests from the models that check them, answers from the structs that are sent.

FastAPI describes the requests; what it cannot know (answers that bypass it, errors in one envelope, the key) is put in
here. A route that has no entry in ANSWERS is an error, so the document cannot fall behind.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi

from runtime.server.errors import Envelope, UnreadyEnvelope
from runtime.server.gate import OPEN_PATHS, needs_engine
from runtime.server.routes.models import ModelCard, ModelList
from runtime.server.routes.state import Health, Version, installed_version
from runtime.server.routes.tokens import Prompt, Tokens
from runtime.server.service import Service
from runtime.server.wire import ChatAnswer, TextAnswer

PATH = "/openapi.json"
_REF = "#/components/schemas/{name}"
_BEARER = "bearer"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Success:
    """A 200. `schema` None: text of `media_type`. `streams`: server-sent events where the request asks for them."""

    schema: type[msgspec.Struct] | None
    media_type: str = "application/json"
    streams: bool = False


ANSWERS = {
    "/health": Success(Health),
    "/metrics": Success(None, "text/plain"),
    "/version": Success(Version),
    "/v1/models": Success(ModelList),
    "/v1/models/{name}": Success(ModelCard),
    "/v1/chat/completions": Success(ChatAnswer, streams=True),
    "/v1/completions": Success(TextAnswer, streams=True),
    "/tokenize": Success(Tokens),
    "/detokenize": Success(Prompt),
}
# A request of each route that takes one, without its model; the answer to each is 200.
EXAMPLES: dict[str, Json] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Say hello."}], "max_completion_tokens": 16},
    "/v1/completions": {"prompt": "Once upon a time", "max_tokens": 16, "stream": True},
    "/tokenize": {"prompt": "Once upon a time"},
    "/detokenize": {"tokens": [1, 2, 3]},
}
_ERRORS = {
    400: "A field is wrong, not supported or beyond a limit; `param` names it.",
    401: "No valid API key.",
    404: "This model is not served here.",
    413: "The body is too large.",
    429: "The queue is full, or the key has used its minute up; Retry-After says when to come back.",
    500: "The request failed in the engine.",
    503: "Not ready, or the engine was lost; Retry-After says when to come back.",
}
_FOR_KEYS = (401,)
_FOR_MODELS = (401, 404, 503)
_FOR_BODIES = (400, 401, 404, 413, 429, 500, 503)


def add_openapi(app: FastAPI, service: Service) -> None:
    """Adds `/openapi.json`, made when it is first asked for."""
    made: list[bytes] = []

    @app.get(PATH, include_in_schema=False)
    async def openapi() -> Response:
        if not made:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(service.pool, document, app, service.name)
            made.append(msgspec.json.encode(found))
        return Response(made[0], media_type="application/json")


def document(app: FastAPI, model: str) -> Json:
    """The whole document of a server of `model`."""
    found = get_openapi(
        title="deployctl", version=installed_version(), description=f"OpenAI API of {model}.", routes=app.routes
    )
    schemas: Json = found["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    structs = {answer.schema for answer in ANSWERS.values() if answer.schema is not None}
    _, answers = msgspec.json.schema_components([*structs, Envelope, UnreadyEnvelope], ref_template=_REF)
    if both := schemas.keys() & answers.keys():
        raise ValueError(f"requests and answers share the names {', '.join(sorted(both))}")
    schemas.update(answers)
    for body in schemas.values():
        _name_model(body, model)
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            operation["responses"] = _responses(path, method)
            if path in OPEN_PATHS:
                operation["security"] = []
            for parameter in operation.get("parameters", ()):
                parameter["example"] = model  # the only one there is: the model's name
            if path in EXAMPLES:
                operation["requestBody"]["content"]["application/json"]["example"] = {"model": model, **EXAMPLES[path]}
    found["components"]["securitySchemes"] = {_BEARER: {"type": "http", "scheme": "bearer"}}
    found["security"] = [{_BEARER: []}]
    return found


def _responses(path: str, method: str) -> Json:
    answer = ANSWERS[path]
    content: Json = {
        answer.media_type: {"schema": {"type": "string"} if answer.schema is None else _ref(answer.schema)}
    }
    if answer.streams:
        content["text/event-stream"] = {}  # OpenAPI 3.1 has no words for what an event holds
    found: Json = {"200": {"description": "Done.", "content": content}}
    if path == "/health":
        found["503"] = {"description": "Not ready yet; Retry-After says when to look again.", "content": _any_json()}
        return found
    statuses = _FOR_BODIES if method == "post" else _FOR_MODELS if needs_engine(path) else _FOR_KEYS
    for status in statuses:
        schema = {"anyOf": [_ref(UnreadyEnvelope), _ref(Envelope)]} if status == 503 else _ref(Envelope)
        found[str(status)] = {"description": _ERRORS[status], "content": {"application/json": {"schema": schema}}}
    return found


def _name_model(body: Json, model: str) -> None:
    """A request's `model` can only be the one that is served."""
    field = body.get("properties", {}).get("model")
    if body.get("additionalProperties") is False and field is not None:
        required = "model" in body.get("required", ())
        body["properties"]["model"] = {"enum": [model] if required else [model, None], "title": "Model"}


def _ref(schema: type[msgspec.Struct]) -> Json:
    return {"$ref": _REF.format(name=schema.__name__)}


def _any_json() -> Json:
    return {"application/json": {"schema": {"type": "object"}}}
