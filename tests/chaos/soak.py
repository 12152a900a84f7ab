"""The run: a storm of requests and faults, a steady stretch in which memory is watched, answers asked again."""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tests.chaos import client
from tests.chaos.ask import Ask, whole
from tests.chaos.bad import BAD
from tests.chaos.client import Seen
from tests.chaos.faults import Gate, Window, schedule, strike
from tests.chaos.machine import Machine, resident_mib
from tests.chaos.plan import ask_of
from tests.chaos.verdict import Answer, Trouble, WrongError, judge

WORKERS = 24
STORM_SHARE = 0.6  # of the requests; the rest runs without faults
BACK_OFF_S = 0.5  # of a client that was told to come again later
IDLE_S = 10.0  # until all gauges must read 0 once nobody asks
SAMPLE_S = 1.0
MOST_GROWTH_MIB = 16.0  # of a process over the steady stretch
SAY_EVERY = 1000  # requests
GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "open_requests")


@dataclass(frozen=True, slots=True)
class Options:
    """`minutes`: stop asking after so long, None = never. `again`: how many answers are asked again alone."""

    seed: int
    requests: int = 20_000
    faults: int = 14
    again: int = 400
    minutes: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """Resident memory in MiB when `requests` had ended."""

    requests: int
    server_mib: float
    engine_mib: float


@dataclass(frozen=True, slots=True)
class Wrong:
    """A broken promise."""

    number: int
    kind: str
    what: str


@dataclass
class Found:
    """All that a run has found out. `outcomes`: how many requests of a kind ended in which way."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[Wrong] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    steady: list[Sample] = field(default_factory=list)
    idle_checks: int = 0
    compared: int = 0
    seconds: float = 0.0
    preemptions: int = 0
    prefix_hits: int = 0
    tokens: int = 0

    @property
    def requests(self) -> int:
        return self.outcomes.total()


class Soak:
    """One run against one machine."""

    def __init__(self, machine: Machine, options: Options) -> None:
        self._machine = machine
        self._options = options
        self._storm = int(options.requests * STORM_SHARE)
        self._kept: list[tuple[Ask, Answer]] = []
        self._keep = random.Random(f"{options.seed}/again")
        self._open = 0
        self._deadline = float("inf")
        self._counters: Counter[str] = Counter()
        self._last: dict[str, float] = {}
        self.found = Found(windows=schedule(options.seed, self._storm, options.faults))

    async def run(self) -> Found:
        begin = time.monotonic()
        if self._options.minutes is not None:
            self._deadline = begin + 60 * self._options.minutes
        await self._storm_of_requests()
        await self._become_idle("after the storm")
        await self._worst_at_once()
        sampler = asyncio.create_task(self._sample())
        await self._ask_all(range(self._storm, self._options.requests), Gate([]))
        sampler.cancel()
        await self._become_idle("after the steady stretch")
        await self._ask_again()
        await self._become_idle("at the end")
        self._look_back()
        self.found.seconds = time.monotonic() - begin
        return self.found

    async def _worst_at_once(self) -> None:
        """Every kind of bad input from all clients at once. The allocator keeps the most that was ever needed together:
        a server that a fault has just replaced would reach that at some time in the steady stretch, and seem to leak.
        """
        rng = random.Random(f"{self._options.seed}/worst")
        for make in BAD:
            await asyncio.gather(*(self._ask(replace(make(rng), number=-1)) for _ in range(WORKERS)))

    async def _storm_of_requests(self) -> None:
        gate = Gate(self.found.windows)

        async def ask() -> None:
            await self._ask_all(range(self._storm), gate)
            await gate.close()

        # A machine that does not come back ends the run: nothing after it could be judged.
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(strike(self._machine, gate, self.found.windows, lambda: self._open))
            tasks.create_task(ask())

    async def _ask_all(self, numbers: range, gate: Gate) -> None:
        left = iter(numbers)

        async def work() -> None:
            for number in left:
                if time.monotonic() > self._deadline:
                    return
                if number % SAY_EVERY == 0:
                    print(f"request {number}, {len(self.found.wrong)} wrong", file=sys.stderr, flush=True)
                await gate.enter(number)
                await self._ask(ask_of(self._options.seed, number))

        await asyncio.gather(*(work() for _ in range(WORKERS)))

    async def _ask(self, ask: Ask) -> None:
        self._open += ask.together
        refused = False
        for seen in await client.send_together(ask, self._machine.port):
            self._open -= 1
            self._judge(ask, seen)
            refused |= seen.status == 503
        if refused:
            await asyncio.sleep(BACK_OFF_S)

    def _judge(self, ask: Ask, seen: Seen) -> None:
        touching = [window for window in self.found.windows if window.touches(seen.started, seen.ended)]
        units = {window.fault.unit for window in touching}
        try:
            outcome, answer = judge(ask, seen, Trouble("engine" in units, "server" in units))
        except WrongError as error:
            self.found.outcomes[ask.kind, "WRONG"] += 1
            self.found.wrong.append(Wrong(ask.number, ask.kind, str(error)))
            return
        self.found.outcomes[ask.kind, outcome] += 1
        for window in touching:
            if outcome not in ("answered", "left") and seen.started < window.began:
                window.longest_s = max(window.longest_s, seen.ended - window.began)
        share = self._options.again / max(1, self._options.requests) * 4
        if answer is not None and ask.repeatable and self._keep.random() < share:
            self._kept.append((ask, answer))

    async def _ask_again(self) -> None:
        """Each kept request alone and in one piece: the answer must be the one that came in the crowd."""
        kept = self._keep.sample(self._kept, min(self._options.again, len(self._kept)))
        for ask, expected in kept:
            alone = whole(ask)
            seen = await client.send(alone, self._machine.port)
            try:
                _, answer = judge(alone, seen, Trouble())
            except WrongError as error:
                self.found.wrong.append(Wrong(ask.number, ask.kind, f"asked again alone: {error}"))
                continue
            self.found.compared += 1
            if answer != expected:
                self.found.wrong.append(Wrong(ask.number, ask.kind, f"alone {answer}, in the crowd {expected}"))

    async def _become_idle(self, when: str) -> None:
        """Nobody asks: within IDLE_S every gauge reads 0, and the engine has proven its pool (tests.chaos.engine)."""
        end = time.monotonic() + IDLE_S
        while True:
            gauges = await asyncio.to_thread(self._machine.gauges)
            busy = {name: gauges.get(f"deployctl_{name}") for name in GAUGES}
            if not any(value != 0 for value in busy.values()):
                break
            if time.monotonic() > end:
                self.found.wrong.append(Wrong(-1, "idle", f"{when} the gauges read {busy}"))
                break
            await asyncio.sleep(0.2)
        self.found.idle_checks += 1

    async def _sample(self) -> None:
        pids = {name: await asyncio.to_thread(self._machine.pid, name) for name in ("server", "engine")}
        while True:
            server, engine = (resident_mib(pids[name] or 0) for name in ("server", "engine"))
            self.found.steady.append(Sample(self.found.requests, server, engine))
            await asyncio.sleep(SAMPLE_S)

    def _look_back(self) -> None:
        """What only the machine knows: exits that nobody asked for, and tracebacks of the server."""
        for unit, exits in self._machine.unordered_exits().items():
            if exits:
                tail = self._machine.log(unit)[-1500:]
                self.found.wrong.append(Wrong(-1, unit, f"{exits} exits more than were asked for; its log: {tail}"))
        log = self._machine.log("server")
        if (at := log.find("Traceback")) >= 0:
            self.found.wrong.append(Wrong(-1, "server", f"a traceback in its log: {log[at : at + 6000]}"))
        for window in self.found.windows:
            limit = window.fault.deadline_s
            if limit is not None and window.longest_s > limit:
                what = f"a request ended {window.longest_s:.1f} s after it, the limit is {limit:g} s"
                self.found.wrong.append(Wrong(window.at_number, window.fault.name, what))
            if window.ready_after_s is None and self._options.minutes is None:
                self.found.wrong.append(Wrong(window.at_number, window.fault.name, "it did not happen"))
        for name, values in memory_of(self.found.steady).items():
            if values and growth(values) > MOST_GROWTH_MIB:
                self.found.wrong.append(Wrong(-1, name, f"its memory has grown by {growth(values):.1f} MiB"))
        gauges = self._machine.gauges()
        self.found.preemptions = int(gauges.get("deployctl_num_preemptions_total", 0))
        self.found.prefix_hits = int(gauges.get("deployctl_prefix_cache_hits_total", 0))
        self.found.tokens = int(gauges.get("deployctl_generation_tokens_total", 0))


def memory_of(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """MiB of each process after the first quarter of the samples, which is warm-up."""
    warm = samples[len(samples) // 4 :]
    return {"server": [sample.server_mib for sample in warm], "engine": [sample.engine_mib for sample in warm]}


def growth(values: Sequence[float]) -> float:
    """MiB between the medians of the first and the last third: one large body that is under way is no growth."""
    third = max(1, len(values) // 3)
    return statistics.median(values[-third:]) - statistics.median(values[:third])
