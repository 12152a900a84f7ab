"""The routes of the API."""

from __future__ import annotations

import asyncio
import functools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import TypeVar

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from runtime.deployment import ApiKey, Deployment
from runtime.ipc import Sampling
from runtime.server import limits
from runtime.server.auth import KeyRing
from runtime.server.chat import chat_grammar, offered_tools, parser_maker, template_options, text_grammar, turns_of
from runtime.server.completion import CompletionResponse, Job
from runtime.server.engine_client import EngineClient
from runtime.server.errors import SERVER, ApiError, bounded, from_status, from_validation, invalid, not_ready
from runtime.server.gate import KEY, REQUEST_ID, Gate
from runtime.server.jobs import COMPLETION_MAX_TOKENS, Bounds, max_tokens_of, samplings_of
from runtime.server.metrics import Metrics
from runtime.server.model import Model
from runtime.server.output_parser import OutputParser
from runtime.server.pages import add_pages
from runtime.server.rates import Rates
from runtime.server.schema import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    GenerationBody,
    TokenizeBody,
)
from runtime.server.status import Readiness
from runtime.server.tokenizer import ChatPrompt, ModelTokenizer, PromptError, PromptTooLongError
from runtime.server.wire import ChatFormat, Format, TextFormat

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
    rates: Rates
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
    add_pages(app)
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
        serving = service.readiness.unready() is None
        body = service.metrics.expose(engine.stats, engine.open_requests, serving, service.rates.accounts)
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
        limit = _context(service)
        tools = offered_tools(body, tokenizer)
        options = template_options(body, tokenizer)

        def prepare() -> tuple[ChatPrompt, str | None]:
            rendered = [tool.model_dump(exclude_none=True) for tool in tools]
            prompt = tokenizer.encode_chat(turns_of(body.messages), limit, tools=rendered, options=options)
            return prompt, chat_grammar(body, tools, prompt, tokenizer)

        prompt, grammar = await _in_pool(service, prepare, "messages")
        wanted, field = max_tokens_of(body)
        if wanted is None:
            wanted = max(1, limit - len(prompt.ids))
        bounds = _bounds(service)
        bounds.check(prompt.ids, wanted, "messages", field)
        samplings = samplings_of(body, wanted, body.wanted_logprobs, bounds.vocab_size, grammar)
        form = ChatFormat(request.scope[REQUEST_ID], int(time.time()), service.name, body.include_usage)
        parser = parser_maker(body, tools, prompt, tokenizer)
        return _run(service, request, body, [prompt.ids], samplings, form, parser=parser)

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        _check_model(service, body.model)
        tokenizer = _tokenizer(service)
        limit = _context(service)

        def prepare() -> tuple[list[list[int]], str | None]:
            prompts = [p if isinstance(p, list) else tokenizer.encode_text(p, limit) for p in body.prompt]
            return prompts, text_grammar(body)

        prompts, grammar = await _in_pool(service, prepare, "prompt")
        wanted = COMPLETION_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        bounds = _bounds(service)
        for ids in prompts:
            bounds.check(ids, wanted, "prompt", "max_tokens")
        samplings = samplings_of(body, wanted, body.wanted_logprobs, bounds.vocab_size, grammar)
        if len(prompts) * len(samplings) > limits.MAX_PROMPTS:
            raise invalid(
                f"{len(prompts)} prompts with n {len(samplings)} are {len(prompts) * len(samplings)} choices, over the "
                f"limit of {limits.MAX_PROMPTS}",
                "n",
            )
        echoes = [tokenizer.text_of(ids) for ids in prompts] if body.echo else []
        form = TextFormat(request.scope[REQUEST_ID], int(time.time()), service.name, body.include_usage)
        return _run(service, request, body, prompts, samplings, form, echoes=echoes)

    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> Response:
        tokenizer, limit = _checked_tokenizer(service, body.model), limits.MAX_TOKENS
        messages, prompt = body.messages, body.prompt or ""

        def encode() -> list[int]:
            if messages is not None:
                return tokenizer.encode_chat(turns_of(messages), limit).ids
            return tokenizer.encode_text(prompt, limit, add_special_tokens=body.add_special_tokens)

        ids = await _in_pool(service, encode, "prompt" if messages is None else "messages")
        return _json({"count": len(ids), "max_model_len": _context(service), "tokens": ids})

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> Response:
        tokenizer = _checked_tokenizer(service, body.model)
        if body.tokens and max(body.tokens) >= tokenizer.vocab_size:
            raise invalid(f"token ids go from 0 to {tokenizer.vocab_size - 1}", "tokens")
        return _json({"prompt": await _in_pool(service, lambda: tokenizer.text_of(body.tokens), "tokens")})

    @app.get("/version")
    async def version() -> Response:
        return _json({"version": _version()})


def _run(
    service: Service,
    request: Request,
    body: GenerationBody,
    prompts: Sequence[list[int]],
    samplings: Sequence[Sampling],
    form: Format,
    *,
    echoes: Sequence[str] | None = None,
    parser: Callable[[], OutputParser] | None = None,
) -> Response:
    """`echoes`: None for a chat, whose answer does not go on where its prompt's text ends."""
    key: ApiKey = request.scope[KEY]
    headers = service.rates.admit(key, sum(map(len, prompts)))
    job = Job(
        request_id=secrets.token_hex(12),  # not the client's: the engine needs ids that nobody repeats
        prompts=prompts,
        samplings=samplings,
        echoes=echoes or (),
        stops=body.stop,
        salt=bytes.fromhex(key.sha256)[:16],  # one prefix cache per key
        stream=bool(body.stream),
        continues_prompt=echoes is not None,
        parser=parser,
        format=form,
        headers=headers,
        spend=functools.partial(service.rates.spend, key),
    )
    service.metrics.last_request_at = time.monotonic()
    return CompletionResponse(job, service.engine, service.metrics, _tokenizer(service))


def _check_model(service: Service, name: str) -> None:
    if name != service.name:
        raise ApiError(
            404,
            f"the model {bounded(name)!r} is not served here; this endpoint serves {service.name!r}",
            param="model",
            code="model_not_found",
        )


def _bounds(service: Service) -> Bounds:
    ready = service.engine.ready
    return Bounds(_context(service), None if ready is None else ready.vocab_size)


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


def _checked_tokenizer(service: Service, model: str | None) -> ModelTokenizer:
    if model is not None:
        _check_model(service, model)
    return _tokenizer(service)


async def _in_pool(service: Service, work: Callable[[], _T], param: str) -> _T:
    """Templates and tokenizers run off the event loop, where a long prompt holds nobody up."""
    try:
        return await asyncio.get_running_loop().run_in_executor(service.pool, work)
    except PromptTooLongError as error:
        raise invalid(str(error), param, "context_length_exceeded") from error
    except PromptError as error:
        raise invalid(bounded(str(error)), param) from error


def _card(service: Service) -> ModelCard:
    return ModelCard(service.name, service.started, _context(service), root=service.deployment.model.source)


def _version() -> str:
    """The distribution's, "unknown" where the code runs without having been installed."""
    try:
        return metadata.version("deployctl")
    except metadata.PackageNotFoundError:
        return "unknown"


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
