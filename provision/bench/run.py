"""Puts loads on endpoints: one event loop asks, times and gives up in an orderly way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from provision.bench.answer import Answer, Server, ask
from provision.bench.load import Load, arrivals
from provision.bench.prompts import Questions

if TYPE_CHECKING:
    import httpx

LAG_STEP_S = 0.05  # how often the event loop's own lateness is measured
UNFINISHED = "not finished when the load's time was over twice"


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of one load on one endpoint. Seconds.

    `wall_s`: from the start until the last answer. `lag_s`: the most that the load generator itself was late.
    """

    server: Server
    load: Load
    answers: tuple[Answer, ...]
    wall_s: float
    lag_s: float


Progress = Callable[[Server, Load, int, float], None]
"""Told (server, load, answers so far, seconds since the load's start) now and then."""


async def put_load(
    client: httpx.AsyncClient,
    server: Server,
    load: Load,
    questions: Questions,
    *,
    first: int,
    seed: int,
    full_length: bool,
    progress: Progress,
) -> Asked:
    """Asks for `load.seconds`, then waits as long again for what is open; what is open then counts as an error.

    `first` is the number of the first question; no number is asked twice.
    """
    numbers = iter(range(first, 2**62))
    answers: list[Answer] = []
    open_requests: set[asyncio.Task[None]] = set()
    started = time.perf_counter()

    async def one(due_s: float) -> None:
        question = questions.question(next(numbers))
        try:
            answer = await ask(client, server, question, full_length=full_length, started=started, due_s=due_s)
        except asyncio.CancelledError:
            answers.append(Answer(due_s=due_s, e2e_s=time.perf_counter() - started - due_s, error=UNFINISHED))
            raise
        answers.append(answer)

    async def ask_in_turn() -> None:
        while (now := time.perf_counter() - started) < load.seconds:
            await one(now)
            if answers[-1].error is not None:
                await asyncio.sleep(LAG_STEP_S)  # an endpoint that refuses at once is not to be flooded

    async def ask_at_random() -> None:
        for due_s in arrivals(load, seed):
            await asyncio.sleep(max(0.0, started + due_s - time.perf_counter()))
            request = asyncio.create_task(one(due_s))
            open_requests.add(request)
            request.add_done_callback(open_requests.discard)

    async with _watched(started, lambda elapsed: progress(server, load, len(answers), elapsed)) as lag:
        if load.kind == "closed":
            open_requests.update(asyncio.create_task(ask_in_turn()) for _ in range(int(load.value)))
        else:
            await ask_at_random()
        waiting = set(open_requests)
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=max(0.0, started + 2 * load.seconds - time.perf_counter()))
            for request in late:
                request.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
    return Asked(server, load, tuple(answers), time.perf_counter() - started, lag.most_s)


@dataclass(slots=True)
class Lag:
    """The most that a timer of this event loop was late, in seconds."""

    most_s: float = 0.0


@asynccontextmanager
async def _watched(started: float, tell: Callable[[float], None]) -> AsyncIterator[Lag]:
    lag = Lag()

    async def watch() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(LAG_STEP_S)
            lag.most_s = max(lag.most_s, time.perf_counter() - before - LAG_STEP_S)
            tell(time.perf_counter() - started)

    watching = asyncio.create_task(watch())
    try:
        yield lag
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
