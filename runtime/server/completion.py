"""One generation request from tokens to the last byte of its answer, streamed or whole.

Whatever ends it (the model, a stop string, the client, the engine, a shutdown), the engine is told
at once about everything that still runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fastapi import Response
from starlette.types import Receive, Scope, Send

from runtime.ipc import Output, Sampling, Submit
from runtime.server.detokenizer import Detokenizer
from runtime.server.engine_client import ClientGoneError, EngineClient, Inbox
from runtime.server.errors import ApiError
from runtime.server.generation import Generation, Piece, joined
from runtime.server.metrics import Metrics
from runtime.server.output_parser import OutputParser
from runtime.server.stop import StopMatcher
from runtime.server.tokenizer import ModelTokenizer
from runtime.server.wire import DONE, Choice, Delta, Format, Usage, usage_of

_EVENT_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


@dataclass(frozen=True, slots=True)
class Job:
    """A validated request: `len(samplings)` choices of each prompt, in the order of the prompts.

    `echoes`: texts of the prompts, where the answer shall begin with them; else empty.
    """

    request_id: str
    prompts: Sequence[list[int]]
    samplings: Sequence[Sampling]
    echoes: Sequence[str]
    stops: Sequence[str]
    salt: bytes
    stream: bool
    continues_prompt: bool  # the output goes on where the prompt's text ends
    parser: Callable[[], OutputParser] | None  # of a chat model that marks thoughts or calls; one for each choice
    format: Format
    headers: Mapping[str, str]  # of the answer
    spend: Callable[[int], None]  # told of output tokens as they come
    keep_text: bool  # generations keep what they produced, for a request log that shows it
    on_end: Callable[[Sequence[Generation]], None]  # told once, however the request ended


class CompletionResponse(Response):
    """Runs a job when the framework asks for the answer."""

    def __init__(self, job: Job, engine: EngineClient, metrics: Metrics, tokenizer: ModelTokenizer) -> None:
        super().__init__()
        self._job = job
        self._engine = engine
        self._metrics = metrics
        now = time.monotonic()
        self._submits: list[Submit] = []
        self._generations: dict[str, Generation] = {}
        for number, prompt in enumerate(job.prompts):
            for sampling in job.samplings:
                index = len(self._submits)
                name = f"{job.request_id}-{index}"
                self._submits.append(Submit(name, prompt, sampling, job.salt))
                self._generations[name] = Generation(
                    index=index,
                    request_id=name,
                    prompt_tokens=len(prompt),
                    detokenizer=Detokenizer(tokenizer.texts, prompt if job.continues_prompt else ()),
                    stops=StopMatcher(job.stops) if job.stops else None,
                    min_tokens=sampling.min_tokens,
                    submitted_at=now,
                    texts=tokenizer.texts if sampling.logprobs is not None else None,
                    echo=job.echoes[number] if job.echoes else "",
                    parser=job.parser() if job.parser is not None else None,
                    kept=[] if job.keep_text else None,
                )
        self._open = len(self._generations)
        self._own_headers = [(name.encode(), value.encode()) for name, value in job.headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ApiError while nothing has been sent yet; later failures go into the stream."""
        inbox = self._engine.submit(self._submits)

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
            self._job.on_end(list(self._generations.values()))

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
                headers = [*_EVENT_STREAM, *self._own_headers]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": events, "more_body": self._open > 0})

    async def _whole(self, inbox: Inbox, send: Send) -> None:
        pieces: dict[int, list[Piece]] = {generation.index: [] for generation in self._generations.values()}
        while self._open:
            for output in await inbox.take():
                generation = self._generations[output.id]
                if generation.finish_reason is None:
                    pieces[generation.index].append(self._feed(inbox, generation, output))
        choices = [_choice(generation, pieces[generation.index]) for generation in self._generations.values()]
        body = self._job.format.whole(choices, self._usage())
        length = (b"content-length", b"%d" % len(body))
        headers = [(b"content-type", b"application/json"), length, *self._own_headers]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _events(self, inbox: Inbox, outputs: Sequence[Output]) -> bytes:
        """All events that these outputs bring, as one write; steps that have piled up are one event of their choice."""
        events = b""
        for name, steps in _by_request(outputs).items():
            generation = self._generations[name]
            first = generation.completion_tokens == 0
            # What came before the engine knew of the stop string is dropped.
            pieces = [self._feed(inbox, generation, step) for step in steps if generation.finish_reason is None]
            if not pieces:
                continue
            piece = joined(pieces)
            offset = generation.offset
            generation.offset += sum(len(entry.token) for entry in piece.logprobs)
            delta = Delta(
                index=generation.index,
                text=piece.text,
                finish_reason=generation.finish_reason,
                first=first,
                logprobs=piece.logprobs,
                offset=offset,
                reasoning=piece.reasoning,
                calls=piece.calls,
            )
            events += self._job.format.chunk(delta)
        return events

    def _feed(self, inbox: Inbox, generation: Generation, output: Output) -> Piece:
        piece = generation.feed(output)
        self._measure(generation, output)
        if generation.finish_reason is not None:
            self._open -= 1
            self._engine.abort(inbox, generation.request_id)  # a stop string ends it before the engine does
            reason = "stop" if generation.finish_reason == "tool_calls" else generation.finish_reason
            self._metrics.finished[reason] += 1
            self._metrics.end_to_end.observe(generation.last_at - generation.submitted_at)
            if generation.first_at is not None:
                self._metrics.decode_time.observe(generation.last_at - generation.first_at)
        return piece

    def _measure(self, generation: Generation, output: Output) -> None:
        metrics, now, tokens = self._metrics, time.monotonic(), len(output.tokens)
        if generation.first_at is None:
            generation.first_at = now
            metrics.prompt_tokens += generation.prompt_tokens
            waited = now - generation.submitted_at
            metrics.time_to_first_token.observe(waited)
            metrics.queue_time.observe(output.queued_s)
            metrics.prefill_time.observe(max(0.0, waited - output.queued_s))
        else:
            metrics.inter_token.observe(now - generation.last_at)
        generation.last_at = now
        metrics.generation_tokens += tokens
        self._job.spend(tokens)

    def _usage(self) -> Usage:
        generations = list(self._generations.values())
        firsts = generations[:: len(self._job.samplings)]
        return usage_of(
            sum(g.prompt_tokens for g in firsts),
            sum(g.completion_tokens for g in generations),
            sum(g.cached_tokens for g in firsts),
        )


def _by_request(outputs: Sequence[Output]) -> dict[str, list[Output]]:
    found: dict[str, list[Output]] = {}
    for output in outputs:
        found.setdefault(output.id, []).append(output)
    return found


def _choice(generation: Generation, pieces: Sequence[Piece]) -> Choice:
    whole = joined(pieces)
    return Choice(
        index=generation.index,
        text=whole.text,
        finish_reason=generation.finish_reason or "stop",
        logprobs=whole.logprobs if generation.texts is not None else None,
        echoed=len(generation.echo),
        reasoning=whole.reasoning,
        calls=whole.calls,
    )


async def _wait_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
