"""What the routes share: the parts of the process, and the checks that several routes make."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from runtime.deployment import Deployment
from runtime.server.activity import keep_activity
from runtime.server.auth import KeyRing
from runtime.server.engine_client import EngineClient
from runtime.server.errors import ApiError, bounded, invalid, not_ready
from runtime.server.jobs import Bounds
from runtime.server.metrics import Metrics
from runtime.server.model import Model
from runtime.server.rates import Rates
from runtime.server.request_log import RequestLog
from runtime.server.status import Readiness
from runtime.server.tokenizer import ModelTokenizer, PromptError, PromptTooLongError

_T = TypeVar("_T")


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
    log: RequestLog
    run_dir: Path
    pool: ThreadPoolExecutor
    started: int  # seconds since the epoch

    async def tell_activity(self) -> None:
        """Until it is cancelled."""
        await keep_activity(self.run_dir, self.engine, self.metrics)

    @property
    def name(self) -> str:
        """The model's name in the API."""
        return self.deployment.model.served_name

    @property
    def context(self) -> int:
        """Tokens that one request may use: the context, or the whole KV pool where that is smaller."""
        ready = self.engine.ready
        if ready is None:
            return self.deployment.engine.max_model_len
        return min(ready.max_model_len, ready.kv_blocks * ready.block_size)

    @property
    def bounds(self) -> Bounds:
        ready = self.engine.ready
        return Bounds(self.context, None if ready is None else ready.vocab_size)

    def check_model(self, name: str) -> None:
        """Raises ApiError 404 for a model that is not served here."""
        if name != self.name:
            raise ApiError(
                404,
                f"the model {bounded(name)!r} is not served here; this endpoint serves {self.name!r}",
                param="model",
                code="model_not_found",
            )

    def tokenizer(self) -> ModelTokenizer:
        """Raises ApiError 503 when the engine or the tokenizer went away after the gate let the request in."""
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            unready = self.readiness.unready()
            assert unready is not None
            raise not_ready(unready)
        return tokenizer

    async def in_pool(self, work: Callable[[], _T], param: str) -> _T:
        """Templates and tokenizers run off the event loop, where a long prompt holds nobody up."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self.pool, work)
        except PromptTooLongError as error:
            raise invalid(str(error), param, "context_length_exceeded") from error
        except PromptError as error:
            raise invalid(bounded(str(error)), param) from error
