"""The routes, and how a request body becomes a job for the engine."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from runtime.deployment import ApiKey, Deployment
from runtime.ipc import Sampling
from runtime.server import limits
from runtime.server.auth import KeyRing
from runtime.server.completion import CompletionResponse, Job
from runtime.server.engine_client import EngineClient
from runtime.server.errors import SERVER, ApiError, bounded, from_status, from_validation, invalid, not_ready
from runtime.server.gate import KEY, Gate
from runtime.server.metrics import Metrics
from runtime.server.model import Model
from runtime.server.schema import ChatBody, CompletionBody, GenerationBody
from runtime.server.status import Readiness
from runtime.server.tokenizer import ModelTokenizer, PromptError, PromptTooLongError
from runtime.server.wire import ChatFormat, Format, TextFormat

_COMPLETION_MAX_TOKENS = 16  # the API's default for /v1/completions
_T = TypeVar("_T")
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes work with."""

    deployment: Deployment
    engine: EngineClient
    model: Model
    readiness: Readiness
    keys: KeyRing
    metrics: Metrics
    pool: ThreadPoolExecutor
    started: int  # seconds since the epoch

    @property
    def name(self) -> str:
        return self.deployment.model.served_name


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
    data: list[ModelCard]
    object: str = "list"


def create_app(service: Service) -> FastAPI:
    """The ASGI application. Its lifespan runs the engine's connection and the tokenizer's loading."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(service.engine.run()), asyncio.create_task(service.model.load())]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(
        Gate,
        keys=service.keys,
        readiness=service.readiness,
        metrics=service.metrics,
        max_body=limits.max_body(service.deployment.engine.max_model_len),
    )
    _add_error_handlers(app, service.metrics)
    _add_routes(app, service)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> Response:
        unready = service.readiness.unready()
        if unready is None:
            ready = {
                "status": "ready",
                "phase": "ready",
                "percent": 100.0,
                "eta_s": 0.0,
                "error": None,
                "hint": None,
            }
            return _json(ready)
        return _json(unready, 503, {"Retry-After": str(unready.retry_after_s)})

    @app.get("/metrics")
    async def metrics() -> Response:
        engine = service.engine
        body = service.metrics.expose(engine.stats, engine.open_requests, service.readiness.unready() is None)
        return Response(body, media_type=_METRICS_TYPE)

    @app.get("/v1/models")
    async def models() -> Response:
        return _json(ModelList([_card(service)]))

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        _check_model(service, name)
        return _json(_card(service))

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        _check_model(service, body.model)
        tokenizer = _tokenizer(service)
        messages = [_message(message.role, message.text, message.name) for message in body.messages]
        limit = _context(service)
        ids = await _in_pool(service, lambda: tokenizer.encode_chat(messages, limit), "messages")
        wanted, field = body.max_tokens, "max_tokens"
        if body.max_completion_tokens is not None:
            if wanted is not None and wanted != body.max_completion_tokens:
                raise invalid("max_tokens is the old name of max_completion_tokens; send one", "max_tokens")
            wanted, field = body.max_completion_tokens, "max_completion_tokens"
        if wanted is None:
            wanted = max(1, limit - len(ids))
        sampling = _sampling(body, wanted)
        _check_length(service, ids, wanted, "messages", field)
        request_id = secrets.token_hex(12)
        form = ChatFormat(request_id, int(time.time()), service.name, body.include_usage)
        return _run(service, request, body, request_id, [ids], [sampling], form, continues_prompt=False)

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        _check_model(service, body.model)
        tokenizer = _tokenizer(service)
        limit = _context(service)

        def encode() -> list[list[int]]:
            return [p if isinstance(p, list) else tokenizer.encode_text(p, limit) for p in body.prompt]

        prompts = await _in_pool(service, encode, "prompt")
        wanted = _COMPLETION_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        for ids in prompts:
            _check_length(service, ids, wanted, "prompt", "max_tokens")
        samplings = [_sampling(body, wanted) for _ in prompts]
        request_id = secrets.token_hex(12)
        form = TextFormat(request_id, int(time.time()), service.name, body.include_usage)
        return _run(service, request, body, request_id, prompts, samplings, form, continues_prompt=True)


def _run(
    service: Service,
    request: Request,
    body: GenerationBody,
    request_id: str,
    prompts: Sequence[list[int]],
    samplings: Sequence[Sampling],
    form: Format,
    *,
    continues_prompt: bool,
) -> Response:
    key: ApiKey = request.scope[KEY]
    job = Job(
        request_id=request_id,
        prompts=prompts,
        samplings=samplings,
        stops=body.stop,
        salt=bytes.fromhex(key.sha256)[:16],  # one prefix cache per key
        stream=bool(body.stream),
        continues_prompt=continues_prompt,
        format=form,
    )
    service.metrics.last_request_at = time.monotonic()
    return CompletionResponse(job, service.engine, service.metrics, _tokenizer(service))


def _sampling(body: GenerationBody, max_tokens: int) -> Sampling:
    min_tokens = body.min_tokens or 0
    if min_tokens > max_tokens:
        raise invalid(f"min_tokens {min_tokens} is over max_tokens {max_tokens}", "min_tokens")
    return Sampling(
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0.0,
        seed=secrets.randbits(63) if body.seed is None else body.seed & (2**63 - 1),
        ignore_eos=bool(body.ignore_eos),
        min_tokens=min_tokens,
        stop_token_ids=tuple(body.stop_token_ids),
    )


def _check_model(service: Service, name: str) -> None:
    if name != service.name:
        raise ApiError(
            404,
            f"the model {bounded(name)!r} is not served here; this endpoint serves {service.name!r}",
            param="model",
            code="model_not_found",
        )


def _check_length(service: Service, ids: list[int], max_tokens: int, param: str, field: str) -> None:
    """Raises ApiError 400 for a prompt that is empty, has ids outside the vocabulary, or leaves no room."""
    ready = service.engine.ready
    if not ids:
        raise invalid("the prompt is empty", param)
    if ready is not None and not 0 <= min(ids) <= max(ids) < ready.vocab_size:
        raise invalid(f"token ids go from 0 to {ready.vocab_size - 1}", param)
    limit = _context(service)
    if len(ids) + max_tokens > limit:
        raise invalid(
            f"the prompt has {len(ids)} tokens and {field} asks for {max_tokens}: together "
            f"{len(ids) + max_tokens}, over the limit of {limit}; shorten the prompt or lower {field}",
            param if len(ids) >= limit else field,
            "context_length_exceeded",
        )


def _context(service: Service) -> int:
    """Tokens that one request may use: the context, or the whole KV pool where that is smaller."""
    ready = service.engine.ready
    if ready is None:
        return service.deployment.engine.max_model_len
    return min(ready.max_model_len, ready.kv_blocks * ready.block_size)


def _tokenizer(service: Service) -> ModelTokenizer:
    """Raises ApiError 503 when the engine or the tokenizer went away after the gate let the request in."""
    tokenizer = service.model.tokenizer
    if tokenizer is None:
        unready = service.readiness.unready()
        assert unready is not None
        raise not_ready(unready)
    return tokenizer


async def _in_pool(service: Service, work: Callable[[], _T], param: str) -> _T:
    """Templates and tokenizers run off the event loop, where a long prompt holds nobody up."""
    try:
        return await asyncio.get_running_loop().run_in_executor(service.pool, work)
    except PromptTooLongError as error:
        raise invalid(str(error), param, "context_length_exceeded") from error
    except PromptError as error:
        raise invalid(bounded(str(error)), param) from error


def _message(role: str, text: str, name: str | None) -> dict[str, str]:
    """A turn as templates expect it. They know `system` only, which is what `developer` means to them."""
    turn = {"role": "system" if role == "developer" else role, "content": text}
    return turn if name is None else {**turn, "name": name}


def _card(service: Service) -> ModelCard:
    return ModelCard(service.name, service.started, _context(service), root=service.deployment.model.source)


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")


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
