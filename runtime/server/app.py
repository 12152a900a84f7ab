"""The ASGI application: gate, routes, and one form for every error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from runtime.server import limits
from runtime.server.errors import SERVER, ApiError, from_status, from_validation
from runtime.server.gate import Gate
from runtime.server.json_text import BoundedRoute
from runtime.server.metrics import Metrics
from runtime.server.openapi import add_openapi
from runtime.server.pages import add_pages
from runtime.server.routes.generations import add_generations
from runtime.server.routes.models import add_models
from runtime.server.routes.state import add_state
from runtime.server.routes.tokens import add_tokens
from runtime.server.service import Service


def create_app(service: Service) -> FastAPI:
    """The ASGI application. Its lifespan runs the engine's connection and the tokenizer's loading."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        hold = service.readiness.hold

        async def follow_engine() -> None:
            await hold.predecessor_gone()
            await service.engine.run()

        tasks = [
            asyncio.create_task(work)
            for work in (follow_engine(), service.model.load(), hold.run(), service.tell_activity())
        ]
        with service.log.running():
            yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.router.route_class = BoundedRoute
    app.add_middleware(
        Gate,
        keys=service.keys,
        readiness=service.readiness,
        metrics=service.metrics,
        log=service.log,
        max_body=limits.max_body(service.deployment.engine.max_model_len),
    )
    _add_error_handlers(app, service.metrics)
    add_state(app, service)
    add_models(app, service)
    add_generations(app, service)
    add_tokens(app, service)
    add_pages(app)
    add_openapi(app, service)
    return app


def _add_error_handlers(app: FastAPI, metrics: Metrics) -> None:
    def answer(error: ApiError) -> Response:
        metrics.refused[str(error.status_code)] += 1
        return error.response()

    @app.exception_handler(ApiError)
    async def known(_: Request, error: ApiError) -> Response:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def validation(_: Request, error: RequestValidationError) -> Response:
        return answer(from_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def framework(_: Request, error: HTTPException) -> Response:
        return answer(from_status(error.status_code, error.headers))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        return answer(ApiError(500, "the server failed; its log says why", code="internal_error", kind=SERVER))
