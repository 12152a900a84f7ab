"""One generation request from tokens to the last byte of its answer, streamed or whole.

Whatever ends it (the model, a stop string, the client, the engine, a shutdown), the engine is told
at once about everything that still runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Response
from starlette.types import Receive, Scope, Send

from runtime.ipc import Output, Sampling, Submit
from runtime.server.detokenizer import Detokenizer
from runtime.server.engine_client import ClientGoneError, EngineClient, Inbox
from runtime.server.errors import ApiError
from runtime.server.generation import Generation
from runtime.server.metrics import Metrics
from runtime.server.stop import StopMatcher
from runtime.server.tokenizer import ModelTokenizer
from runtime.server.wire import DONE, Choice, Format, Usage, usage_of

_EVENT_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


@dataclass(frozen=True, slots=True)
class Job:
    """A validated request: one generation per prompt, `samplings` beside `prompts`."""

    request_id: str
    prompts: Sequence[list[int]]
    samplings: Sequence[Sampling]
    stops: Sequence[str]
    salt: bytes
    stream: bool
    continues_prompt: bool  # the output goes on where the prompt's text ends
    format: Format


class CompletionResponse(Response):
    """Runs a job when the framework asks for the answer."""

    def __init__(self, job: Job, engine: EngineClient, metrics: Metrics, tokenizer: ModelTokenizer) -> None:
        super().__init__()
        self._job = job
        self._engine = engine
        self._metrics = metrics
        now = time.monotonic()
        self._generations = {
            f"{job.request_id}-{index}": Generation(
                index=index,
                request_id=f"{job.request_id}-{index}",
                prompt_tokens=len(prompt),
                detokenizer=Detokenizer(tokenizer.tokenizer, prompt if job.continues_prompt else ()),
                stops=StopMatcher(job.stops) if job.stops else None,
                min_tokens=job.samplings[index].min_tokens,
                submitted_at=now,
            )
            for index, prompt in enumerate(job.prompts)
        }
        self._open = len(self._generations)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ApiError while nothing has been sent yet; later failures go into the stream."""
        inbox = self._engine.submit(self._submits())

        def gone(_: asyncio.Task[None]) -> None:
            self._engine.close(inbox)
            inbox.fail(ClientGoneError())

        watcher = asyncio.create_task(_wait_disconnect(receive))
        watcher.add_done_callback(gone)
        try:
            await (self._stream if self._job.stream else self._whole)(inbox, send)
        except ClientGoneError:
            self._metrics.finished["abort"] += self._open
        except ApiError:
            self._metrics.finished["error"] += self._open
            raise
        finally:
            watcher.remove_done_callback(gone)
            watcher.cancel()
            self._engine.close(inbox)
            self._metrics.last_request_at = time.monotonic()

    async def _stream(self, inbox: Inbox, send: Send) -> None:
        # The head goes out with the first token: until then a failure is an honest status code.
        begun = False
        while self._open:
            try:
                events = self._events(inbox, await inbox.take())
            except ApiError as error:
                if not begun:
                    raise
                self._metrics.finished["error"] += self._open
                body = b"data: " + error.body() + b"\n\n"
                await send({"type": "http.response.body", "body": body, "more_body": False})
                return
            if not self._open:
                events += self._job.format.usage(self._usage()) + DONE
            if not events:
                continue
            if not begun:
                begun = True
                await send({"type": "http.response.start", "status": 200, "headers": _EVENT_STREAM})
            await send({"type": "http.response.body", "body": events, "more_body": self._open > 0})

    async def _whole(self, inbox: Inbox, send: Send) -> None:
        texts: dict[int, list[str]] = {generation.index: [] for generation in self._generations.values()}
        while self._open:
            for output in await inbox.take():
                generation = self._generations[output.id]
                if generation.finish_reason is None:
                    texts[generation.index].append(self._feed(inbox, generation, output))
        choices = [
            Choice(g.index, "".join(texts[g.index]), g.finish_reason or "stop") for g in self._generations.values()
        ]
        body = self._job.format.whole(choices, self._usage())
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _events(self, inbox: Inbox, outputs: Sequence[Output]) -> bytes:
        """All events that these outputs bring, as one write."""
        events = b""
        for output in outputs:
            generation = self._generations[output.id]
            if generation.finish_reason is not None:  # came before the engine knew of the stop string
                continue
            first = generation.completion_tokens == 0
            text = self._feed(inbox, generation, output)
            events += self._job.format.chunk(generation.index, text, generation.finish_reason, first=first)
        return events

    def _feed(self, inbox: Inbox, generation: Generation, output: Output) -> str:
        text = generation.feed(output)
        self._measure(generation, len(output.tokens))
        if generation.finish_reason is not None:
            self._open -= 1
            self._engine.abort(inbox, generation.request_id)  # a stop string ends it before the engine does
            self._metrics.finished[generation.finish_reason] += 1
            self._metrics.end_to_end.observe(generation.last_at - generation.submitted_at)
            if generation.first_at is not None:
                self._metrics.decode_time.observe(generation.last_at - generation.first_at)
        return text

    def _measure(self, generation: Generation, tokens: int) -> None:
        metrics, now = self._metrics, time.monotonic()
        if generation.first_at is None:
            generation.first_at = now
            metrics.prompt_tokens += generation.prompt_tokens
            metrics.time_to_first_token.observe(now - generation.submitted_at)
        else:
            metrics.inter_token.observe(now - generation.last_at)
        generation.last_at = now
        metrics.generation_tokens += tokens

    def _submits(self) -> list[Submit]:
        job = self._job
        return [
            Submit(request_id, prompt, sampling, job.salt)
            for request_id, prompt, sampling in zip(self._generations, job.prompts, job.samplings, strict=True)
        ]

    def _usage(self) -> Usage:
        generations = self._generations.values()
        return usage_of(
            sum(g.prompt_tokens for g in generations),
            sum(g.completion_tokens for g in generations),
            sum(g.cached_tokens for g in generations),
        )


async def _wait_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
