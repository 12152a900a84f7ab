"""Routes about the endpoint itself: is it ready, what has it done, which version is it."""

from __future__ import annotations

from importlib import metadata

import msgspec
from fastapi import FastAPI, Response

from runtime.server.answers import json_answer
from runtime.server.service import Service

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Health(msgspec.Struct, frozen=True):
    """Answer of `/health` when requests are taken; until then it is that of a 503 without its envelope."""

    status: str = "ready"
    phase: str = "ready"
    percent: float = 100.0
    eta_s: float = 0.0
    error: None = None
    hint: None = None


class Version(msgspec.Struct, frozen=True):
    """Answer of `/version`."""

    version: str


def add_state(app: FastAPI, service: Service) -> None:
    """Adds `/health`, `/metrics` and `/version`."""

    @app.get("/health")
    async def health() -> Response:
        unready = service.readiness.unready()
        if unready is None:
            return json_answer(Health())
        return json_answer(unready, 503, {"Retry-After": str(unready.retry_after_s)})

    @app.get("/metrics")
    async def metrics() -> Response:
        engine = service.engine
        serving = service.readiness.unready() is None
        body = service.metrics.expose(engine.stats, engine.open_requests, serving, service.rates.accounts, engine.gpus)
        return Response(body, media_type=_METRICS_TYPE)

    @app.get("/version")
    async def version() -> Response:
        return json_answer(Version(installed_version()))


def installed_version() -> str:
    """The distribution's, "unknown" where the code runs without having been installed."""
    try:
        return metadata.version("deployctl")
    except metadata.PackageNotFoundError:
        return "unknown"
