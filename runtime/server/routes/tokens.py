"""Routes of the tokenizer."""

from __future__ import annotations

import msgspec
from fastapi import FastAPI, Response

from runtime.server import limits
from runtime.server.answers import json_answer
from runtime.server.chat import turns_of
from runtime.server.errors import invalid
from runtime.server.schema import DetokenizeBody, TokenizeBody
from runtime.server.service import Service
from runtime.server.tokenizer import ModelTokenizer


class Tokens(msgspec.Struct, frozen=True):
    """Answer of `/tokenize`."""

    count: int
    max_model_len: int
    tokens: list[int]


class Prompt(msgspec.Struct, frozen=True):
    """Answer of `/detokenize`."""

    prompt: str


def add_tokens(app: FastAPI, service: Service) -> None:
    """Adds `/tokenize` and `/detokenize`."""

    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> Response:
        tokenizer, limit = _tokenizer_of(service, body.model), limits.MAX_TOKENS
        messages, prompt = body.messages, body.prompt or ""

        def encode() -> list[int]:
            if messages is not None:
                return tokenizer.encode_chat(turns_of(messages), limit).ids
            return tokenizer.encode_text(prompt, limit, add_special_tokens=body.add_special_tokens)

        ids = await service.in_pool(encode, "prompt" if messages is None else "messages")
        return json_answer(Tokens(len(ids), service.context, ids))

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> Response:
        tokenizer = _tokenizer_of(service, body.model)
        if body.tokens and max(body.tokens) >= tokenizer.vocab_size:
            raise invalid(f"token ids go from 0 to {tokenizer.vocab_size - 1}", "tokens")
        return json_answer(Prompt(await service.in_pool(lambda: tokenizer.text_of(body.tokens), "tokens")))


def _tokenizer_of(service: Service, model: str | None) -> ModelTokenizer:
    if model is not None:
        service.check_model(model)
    return service.tokenizer()
