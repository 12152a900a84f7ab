"""What a server gives under a steady load, from the time of its steps: tokens/s, TTFT and TPOT. Pure.

`streams` clients each have one request open; when it ends, the client sends the next. `serve` goes step by step, as the
engine's scheduler does (runtime.engine.scheduler): running requests first, then waiting ones, within one budget of
tokens per step; a test holds them equal. `steady` is what that comes to once the clients are spread evenly, in closed
form. HTTP, tokenizing and the pipelining of steps are part of neither.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.step_model import NOTHING, Step, row


@dataclass(frozen=True, slots=True)
class Load:
    """`requests` in all, each with `prompt` tokens in and `output` out, `streams` of them at a time."""

    streams: int
    requests: int
    prompt: int
    output: int


@dataclass(frozen=True, slots=True)
class Served:
    """Output tokens/s over the whole load; medians over the requests, in seconds."""

    output_tokens_s: float
    ttft_s: float
    tpot_s: float
    steps: int


@dataclass(slots=True)
class _Cohort:
    """Requests that were admitted in the same step and stay alike: `count` of them, each `computed` tokens far."""

    count: int
    asked_s: float
    computed: int = 0
    planned: int = 0
    first_s: float = 0.0


@dataclass(slots=True)
class _Client:
    """The load as the scheduler meets it."""

    load: Load
    waiting: deque[_Cohort] = field(default_factory=deque)
    running: list[_Cohort] = field(default_factory=list)
    sent: int = 0

    def send(self, count: int, now_s: float) -> None:
        count = min(count, self.load.requests - self.sent)
        if count:
            self.sent += count
            self.waiting.append(_Cohort(count, now_s))

    def plan(self, budget: int) -> Step:
        """Tokens of the next step, noted in each cohort's `planned`."""
        prompt, step = self.load.prompt, NOTHING
        for cohort in self.running:
            cohort.planned = max(1, min(prompt - cohort.computed, budget))
            step += self._row(cohort)
            budget -= cohort.planned * cohort.count
        while self.waiting and budget > 0:
            first = self.waiting[0]
            whole = min(first.count, budget // prompt)
            count, tokens = (whole, prompt) if whole else (1, budget)
            first.count -= count
            if not first.count:
                self.waiting.popleft()
            cohort = _Cohort(count, first.asked_s, planned=tokens)
            self.running.append(cohort)
            step += self._row(cohort)
            budget -= count * tokens
        return step

    def _row(self, cohort: _Cohort) -> Step:
        end = cohort.computed + cohort.planned
        return row(cohort.computed, cohort.planned, samples=end >= self.load.prompt, requests=cohort.count)


def steady(streams: int, prompt: int, output: int, budget: int, seconds: Callable[[Step], float]) -> Served:
    """The closed form, for clients that are spread evenly over the answers of each other.

    In `output` steps each of the S clients ends one request and begins the next, so that k = S / output prompts come
    with a step: a share k − ⌊k⌋ of the steps has ⌊k⌋ + 1, the others ⌊k⌋. Contexts are those in the middle of an
    answer. A request waits for half a step, and then for the step of its own prompt; what interrupts its answer are
    the prompts of the S − 1 others. Raises ValueError where the prompts of a step do not fit its budget.
    """
    few, most = streams // output, -(-streams // output)
    if most * prompt + streams - most > budget:
        raise ValueError(f"{most} prompts of {prompt} tokens beside {streams - most} decodes exceed {budget} tokens")

    def step_s(prompts: int) -> float:
        decodes = row(prompt + output // 2 - 1, 1, requests=streams - prompts)
        return seconds((decodes if streams > prompts else NOTHING) + (row(0, prompt, requests=prompts)))

    def mean_s(clients: int) -> float:
        share = clients / output - few
        return (1 - share) * step_s(few) + share * step_s(most)

    full_s = mean_s(streams)
    waits_s = full_s / 2 if streams > 1 else 0.0
    return Served(streams / full_s, waits_s + step_s(max(1, most)), mean_s(streams - 1), output)


def serve(load: Load, budget: int, seconds: Callable[[Step], float]) -> Served:
    """`budget`: tokens of one step. Raises ValueError where it is smaller than the streams, which then would starve."""
    if budget < load.streams:
        raise ValueError(f"a budget of {budget} tokens is less than one for each of {load.streams} streams")
    ttfts: list[float] = []
    tpots: list[float] = []
    client, now_s, steps = _Client(load), 0.0, 0
    client.send(load.streams, now_s)
    while client.running or client.waiting:
        now_s += seconds(client.plan(budget))
        steps += 1
        for cohort in _apply(client, now_s):
            ttfts += [cohort.first_s - cohort.asked_s] * cohort.count
            if load.output > 1:
                tpots += [(now_s - cohort.first_s) / (load.output - 1)] * cohort.count
            client.send(cohort.count, now_s)
    tpot_s = statistics.median(tpots) if tpots else 0.0
    return Served(load.requests * load.output / now_s, statistics.median(ttfts), tpot_s, steps)


def _apply(client: _Client, now_s: float) -> list[_Cohort]:
    """The step has run; returns the cohorts that ended with it."""
    load = client.load
    ended: list[_Cohort] = []
    for cohort in client.running:
        cohort.computed += cohort.planned
        if cohort.computed == load.prompt:
            cohort.first_s = now_s
        if cohort.computed == load.prompt + load.output - 1:
            ended.append(cohort)
    client.running = [cohort for cohort in client.running if cohort.computed < load.prompt + load.output - 1]
    return ended
