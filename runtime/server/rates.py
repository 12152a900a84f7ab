"""What each API key may use per minute, and what it has used: token buckets that refill steadily.

A bucket holds at most one minute's worth. A request takes its place at once, its prompt's tokens when they are counted,
and its output's as they come: those may push the bucket below zero, and the next request waits until it has refilled.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from runtime.deployment import ApiKey
from runtime.server.errors import RATE_LIMIT, ApiError

MINUTE_S = 60.0


@dataclass(slots=True)
class Bucket:
    """`level` of at most `per_minute`; both in requests or tokens. Times are seconds of any monotonic clock."""

    per_minute: int
    level: float
    at: float

    def refill(self, now: float) -> None:
        self.level = min(self.per_minute, self.level + (now - self.at) * self.per_minute / MINUTE_S)
        self.at = now

    def wait_s(self, amount: float) -> float:
        """Seconds until `amount` is there; 0 when it is there now."""
        return max(0.0, (min(amount, self.per_minute) - self.level) * MINUTE_S / self.per_minute)


@dataclass(slots=True)
class Account:
    """One key's use since the server's start, and its buckets where it has limits."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    refused: int = 0
    buckets: dict[str, Bucket] = field(default_factory=dict)


class Rates:
    """Accounts of all keys by name. Limits may change while the server runs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.accounts: dict[str, Account] = {}

    def admit(self, key: ApiKey, prompt_tokens: int) -> dict[str, str]:
        """Takes one request with `prompt_tokens`; the answer is its `x-ratelimit` headers.

        Raises ApiError 429 with Retry-After; then nothing is taken.
        """
        account = self._account(key)
        costs = {"requests": 1, "tokens": prompt_tokens}
        waits = {kind: bucket.wait_s(costs[kind]) for kind, bucket in account.buckets.items()}
        kind = max(waits, key=lambda name: waits[name], default=None)
        if kind is not None and waits[kind] > 0:
            account.refused += 1
            limit, seconds = account.buckets[kind].per_minute, math.ceil(waits[kind])
            raise ApiError(
                429,
                f"the key {key.name!r} may use {limit} {kind} per minute; try again in {seconds} s",
                code="rate_limit_exceeded",
                kind=RATE_LIMIT,
                headers={"Retry-After": str(seconds), **_headers(account)},
            )
        account.requests += 1
        account.prompt_tokens += prompt_tokens
        for name, bucket in account.buckets.items():
            bucket.level -= costs[name]
        return _headers(account)

    def spend(self, key: ApiKey, completion_tokens: int) -> None:
        """Output tokens of a request that was admitted."""
        account = self.accounts[key.name]
        account.completion_tokens += completion_tokens
        if (bucket := account.buckets.get("tokens")) is not None:
            bucket.refill(self._clock())
            bucket.level -= completion_tokens

    def _account(self, key: ApiKey) -> Account:
        now = self._clock()
        account = self.accounts.get(key.name)
        if account is None:
            account = self.accounts[key.name] = Account()
        for kind, limit in (("requests", key.rpm), ("tokens", key.tpm)):
            bucket = account.buckets.get(kind)
            if limit is None:
                account.buckets.pop(kind, None)
            elif bucket is None or bucket.per_minute != limit:
                account.buckets[kind] = Bucket(limit, limit, now)
            else:
                bucket.refill(now)
        return account


def _headers(account: Account) -> dict[str, str]:
    """OpenAI's names; resets as "1.5s": until the bucket is full again."""
    found: dict[str, str] = {}
    for kind, bucket in account.buckets.items():
        found[f"x-ratelimit-limit-{kind}"] = str(bucket.per_minute)
        found[f"x-ratelimit-remaining-{kind}"] = str(max(0, math.floor(bucket.level)))
        found[f"x-ratelimit-reset-{kind}"] = f"{bucket.wait_s(bucket.per_minute):.1f}s"
    return found
