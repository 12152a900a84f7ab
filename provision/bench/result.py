"""What answers under load amount to: rates, percentiles, goodput, price. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from provision.bench.answer import Answer
from provision.bench.run import Asked

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True)
class Objective:
    """A service level objective (SLO), in seconds: what an answer must keep to count as good. None = no matter."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def is_met(self, answer: Answer) -> bool:
        if answer.error is not None or answer.ttft_s is None:
            return False
        if self.ttft_s is not None and answer.ttft_s > self.ttft_s:
            return False
        return self.tpot_s is None or answer.tpot_s is None or answer.tpot_s <= self.tpot_s

    @property
    def text(self) -> str:
        parts = [f"{name} ≤ {value:g} s" for name, value in (("TTFT", self.ttft_s), ("TPOT", self.tpot_s)) if value]
        return " and ".join(parts)


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, 95th and 99th percentile of a time, in seconds."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Result:
    """One load on one endpoint. Times in seconds; tokens as the server counted them; rates per second of `wall_s`.

    `goodput_rps`: answers per second that met the objective; None without one. `usd_per_million_output_tokens` is the
    machine's price by the hour over the output of an hour at this load; None where the price is unknown. Spreads are
    None where nothing was measured.
    """

    server: str
    load: str
    kind: str
    offered: float  # clients (closed) or requests per second (open)
    requests: int
    errors: int
    wall_s: float
    requests_per_s: float
    output_tokens_per_s: float
    prompt_tokens_mean: float | None
    output_tokens_mean: float | None
    ttft_s: Spread | None
    tpot_s: Spread | None
    itl_s: Spread | None
    e2e_s: Spread | None
    goodput_rps: float | None
    usd_per_million_output_tokens: float | None
    generator_lag_s: float
    first_errors: tuple[str, ...]  # the most frequent ones, with their count


def summarize(asked: Asked, objective: Objective | None) -> Result:
    good = [answer for answer in asked.answers if answer.error is None]
    wall = asked.wall_s or 1e-9
    output = sum(answer.output_tokens for answer in good)
    errors = Counter(answer.error for answer in asked.answers if answer.error is not None)
    met = None if objective is None else sum(objective.is_met(answer) for answer in good)
    return Result(
        server=asked.server.name,
        load=asked.load.label,
        kind=asked.load.kind,
        offered=asked.load.value,
        requests=len(asked.answers),
        errors=len(asked.answers) - len(good),
        wall_s=asked.wall_s,
        requests_per_s=len(good) / wall,
        output_tokens_per_s=output / wall,
        prompt_tokens_mean=statistics.fmean(answer.prompt_tokens for answer in good) if good else None,
        output_tokens_mean=output / len(good) if good else None,
        ttft_s=spread(answer.ttft_s for answer in good if answer.ttft_s is not None),
        tpot_s=spread(tpot for answer in good if (tpot := answer.tpot_s) is not None),
        itl_s=spread(gap for answer in good for gap in answer.gaps),
        e2e_s=spread(answer.e2e_s for answer in good),
        goodput_rps=None if met is None else met / wall,
        usd_per_million_output_tokens=usd_per_million(asked.server.price_per_hour, output / wall),
        generator_lag_s=asked.lag_s,
        first_errors=tuple(f"{count}× {error}" for error, count in errors.most_common(3)),
    )


def usd_per_million(price_per_hour: float | None, tokens_per_s: float) -> float | None:
    """US dollars per million tokens of a machine that is paid by the hour and gives `tokens_per_s` all that time."""
    if price_per_hour is None or tokens_per_s <= 0:
        return None
    return price_per_hour / SECONDS_PER_HOUR / tokens_per_s * 1_000_000


def spread(times: Iterable[float]) -> Spread | None:
    """Percentiles by linear interpolation; None of nothing."""
    ordered = sorted(times)
    if not ordered:
        return None
    return Spread(*(_percentile(ordered, share) for share in (0.50, 0.95, 0.99)))


def _percentile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
