"""One measurement: every load on every endpoint, endpoints in turn, so that what else the machine does meets both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from provision.bench.answer import Server, honours_full_length, open_client, words_for
from provision.bench.load import Load
from provision.bench.prompts import FileQuestions, Question, Questions, RandomQuestions
from provision.bench.result import Objective, Result, summarize
from provision.bench.run import Progress, put_load


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be measured. `questions` from a file, or random words of about `prompt_tokens` tokens."""

    servers: tuple[Server, ...]
    loads: tuple[Load, ...]
    prompt_tokens: int
    output_tokens: int
    questions: tuple[Question, ...] = ()
    objective: Objective | None = None
    seed: int = 0


def measure(wanted: Wanted, *, progress: Progress, done: Callable[[Result], None]) -> None:
    """Calls `done` after each load on each endpoint, so that Ctrl-C loses only what was under way.

    Raises EndpointError when an endpoint answers no question at all.
    """
    asyncio.run(_measure(wanted, progress, done))


async def _measure(wanted: Wanted, progress: Progress, done: Callable[[Result], None]) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(open_client(server)) for server in wanted.servers]
        full_length = [
            await honours_full_length(client, server) for client, server in zip(clients, wanted.servers, strict=True)
        ]
        words = await words_for(clients[0], wanted.servers[0], wanted.prompt_tokens)
        asked = 0
        for number, load in enumerate(wanted.loads):
            most = 0
            for index in _turn(len(wanted.servers), number):
                outcome = await put_load(
                    clients[index],
                    wanted.servers[index],
                    load,
                    _questions(wanted, words),
                    first=asked,
                    seed=wanted.seed + number,
                    full_length=full_length[index] and not wanted.questions,
                    progress=progress,
                )
                most = max(most, len(outcome.answers))
                done(summarize(outcome, wanted.objective))
            asked += most


def _turn(servers: int, number: int) -> Sequence[int]:
    """Who goes first changes with each load."""
    order = range(servers)
    return order if number % 2 == 0 else tuple(reversed(order))


def _questions(wanted: Wanted, words: int) -> Questions:
    if wanted.questions:
        return FileQuestions(wanted.questions, wanted.seed)
    return RandomQuestions(words, wanted.output_tokens, wanted.seed)
