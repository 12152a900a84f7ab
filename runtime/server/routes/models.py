"""Routes about the one model that is served."""

from __future__ import annotations

import msgspec
from fastapi import FastAPI, Response

from runtime.server.answers import json_answer
from runtime.server.service import Service


class ModelCard(msgspec.Struct, frozen=True):
    """One entry of `/v1/models`."""

    id: str
    created: int
    max_model_len: int
    object: str = "model"
    owned_by: str = "deployctl"
    root: str = ""
    parent: None = None


class ModelList(msgspec.Struct, frozen=True):
    """Answer of `/v1/models`."""

    data: list[ModelCard]
    object: str = "list"


def add_models(app: FastAPI, service: Service) -> None:
    """Adds `/v1/models` and `/v1/models/{name}`."""

    @app.get("/v1/models")
    async def models() -> Response:
        return json_answer(ModelList([_card(service)]))

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        service.check_model(name)
        return json_answer(_card(service))


def _card(service: Service) -> ModelCard:
    return ModelCard(service.name, service.started, service.context, root=service.deployment.model.source)
