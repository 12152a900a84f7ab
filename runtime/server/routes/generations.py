"""Routes that ask the model for text: chat and bare completions."""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Callable, Sequence

from fastapi import FastAPI, Request, Response

from runtime.deployment import ApiKey
from runtime.ipc import Sampling
from runtime.server import limits
from runtime.server.chat import chat_grammar, offered_tools, parser_maker, template_options, text_grammar, turns_of
from runtime.server.completion import CompletionResponse, Job
from runtime.server.errors import invalid
from runtime.server.gate import KEY, REQUEST_ID
from runtime.server.generation import Generation
from runtime.server.jobs import COMPLETION_MAX_TOKENS, max_tokens_of, samplings_of
from runtime.server.output_parser import OutputParser
from runtime.server.request_log import RECORD, Record
from runtime.server.schema import ChatBody, CompletionBody, GenerationBody
from runtime.server.service import Service
from runtime.server.tokenizer import ChatPrompt
from runtime.server.wire import ChatFormat, Format, TextFormat


def add_generations(app: FastAPI, service: Service) -> None:
    """Adds `/v1/chat/completions` and `/v1/completions`."""

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        service.check_model(body.model)
        tokenizer = service.tokenizer()
        limit = service.context
        tools = offered_tools(body, tokenizer)
        options = template_options(body, tokenizer)

        def prepare() -> tuple[ChatPrompt, str | None]:
            rendered = [tool.model_dump(exclude_none=True) for tool in tools]
            prompt = tokenizer.encode_chat(turns_of(body.messages), limit, tools=rendered, options=options)
            return prompt, chat_grammar(body, tools, prompt, tokenizer)

        prompt, grammar = await service.in_pool(prepare, "messages")
        wanted, field = max_tokens_of(body)
        if wanted is None:
            wanted = max(1, limit - len(prompt.ids))
        bounds = service.bounds
        bounds.check(prompt.ids, wanted, "messages", field)
        samplings = samplings_of(body, wanted, body.wanted_logprobs, bounds.vocab_size, grammar)
        form = ChatFormat(request.scope[REQUEST_ID], int(time.time()), service.name, body.include_usage)
        parser = parser_maker(body, tools, prompt, tokenizer)
        return _run(service, request, body, [prompt.ids], samplings, form, parser=parser)

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        service.check_model(body.model)
        tokenizer = service.tokenizer()
        limit = service.context

        def prepare() -> tuple[list[list[int]], str | None]:
            prompts = [p if isinstance(p, list) else tokenizer.encode_text(p, limit) for p in body.prompt]
            return prompts, text_grammar(body)

        prompts, grammar = await service.in_pool(prepare, "prompt")
        wanted = COMPLETION_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        bounds = service.bounds
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
    record: Record | None = request.scope.get(RECORD)
    if record is not None:
        record.started(body, prompts)
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
        keep_text=record is not None and record.full,
        on_end=record.ended if record is not None else _forget,
    )
    service.metrics.last_request_at = time.monotonic()
    return CompletionResponse(job, service.engine, service.metrics, service.tokenizer())


def _forget(_: Sequence[Generation]) -> None:
    """Where no request log is kept."""
