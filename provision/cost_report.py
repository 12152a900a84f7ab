"""What a deployment costs: by line and hour now, so far, until its end, and for a million tokens. Pure.

All prices are estimates in US dollars. An unknown price is left out of sums and named; an unknown price of the machine
itself makes the sums unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

from provision.costs import CostItem
from provision.errors import UsageError
from provision.usage import Usage

HOUR_S = 3600.0
MIN_LEFT_S = 35 * 60  # Alibaba Cloud's timer takes an end from 30 minutes on; setting it takes some of them
MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class CostReport:
    """`items`: what bills now. Times in seconds since the epoch: `since`, when the machine was made; `expires_at`.

    `usage`: None where the endpoint could not be asked.
    """

    name: str
    target: str
    life: str
    items: tuple[CostItem, ...]
    now: float
    since: float | None = None
    expires_at: int | None = None
    spent_usd: float | None = None
    usage: Usage | None = None

    @property
    def usd_per_hour(self) -> float | None:
        return hourly(self.items)

    @property
    def unknown(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.items if item.usd_per_hour is None)

    @property
    def usd_until_end(self) -> float | None:
        """From now on; None without an end."""
        if self.usd_per_hour is None or self.expires_at is None or self.expires_at <= self.now:
            return None
        return self.usd_per_hour * (self.expires_at - self.now) / HOUR_S

    @property
    def usd_per_million_tokens(self) -> float | None:
        """Prompt and output together, in the time that the server's counters cover."""
        usage = self.usage
        return None if usage is None else self._per_million(usage.prompt_tokens + usage.generated_tokens)

    @property
    def usd_per_million_generated(self) -> float | None:
        return None if self.usage is None else self._per_million(self.usage.generated_tokens)

    def _per_million(self, tokens: int) -> float | None:
        if self.usage is None or self.usage.seconds is None or self.usd_per_hour is None or tokens == 0:
            return None
        return self.usd_per_hour * self.usage.seconds / HOUR_S * MILLION / tokens


def hourly(items: tuple[CostItem, ...]) -> float | None:
    """The sum of what is known; None where the first line, the machine's, is not."""
    if not items or items[0].usd_per_hour is None:
        return None
    return sum(item.usd_per_hour for item in items if item.usd_per_hour is not None)


def spent(
    running: tuple[CostItem, ...], rest: tuple[CostItem, ...], *, since: float, ended: float | None, now: float
) -> float | None:
    """Dollars from `since` until now. `ended`: when the machine was deleted, and only `rest` went on to bill."""
    rate = hourly(running)
    if rate is None:
        return None
    if ended is None or ended >= now:
        return rate * (now - since) / HOUR_S
    after = sum(item.usd_per_hour for item in rest if item.usd_per_hour is not None)
    return (rate * (ended - since) + after * (now - ended)) / HOUR_S


def end_within(report: CostReport, budget: float) -> int:
    """When the machine must end so that all of its life costs at most `budget` dollars; a whole minute.

    Raises UsageError where that is not known, or too soon for the cloud's timer.
    """
    name, rate, so_far = report.name, report.usd_per_hour, report.spent_usd
    if rate is None or so_far is None or rate <= 0:
        raise UsageError(
            f"a budget cannot be kept for {name}",
            why=f"unknown: {', '.join(report.unknown) or 'when its machine was made'}",
            next_command=f"deployctl cost {name}",
        )
    end = report.now + (budget - so_far) / rate * HOUR_S
    if end < report.now + MIN_LEFT_S:
        raise UsageError(
            f"${budget:.2f} are too little for {name}",
            why=f"about ${so_far:.2f} are spent, ${rate:.2f} come with each hour; a cloud's timer takes no end within"
            f" {MIN_LEFT_S // 60} minutes, so the least is ${so_far + rate * MIN_LEFT_S / HOUR_S:.2f}",
            next_command=f"deployctl down {name}",
        )
    return int(end) // 60 * 60
