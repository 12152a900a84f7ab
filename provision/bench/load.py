"""How requests arrive at an endpoint under test. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

LoadKind = Literal["closed", "open"]


@dataclass(frozen=True, slots=True)
class Load:
    """One load on an endpoint, for `seconds`.

    closed: `value` clients, each of which asks again as soon as it has its answer, so the endpoint sets the pace.
    open: `value` requests per second at random moments (a Poisson process), whether or not earlier ones have ended.
    """

    kind: LoadKind
    value: float
    seconds: float

    @property
    def label(self) -> str:
        """How tables name it: "c=10" or "20/s"."""
        return f"c={self.value:g}" if self.kind == "closed" else f"{self.value:g}/s"


def arrivals(load: Load, seed: int) -> Iterator[float]:
    """Moments of an open load's requests, in seconds from its start: gaps are exponential with mean 1/`value`."""
    rng = random.Random(seed)
    at = rng.expovariate(load.value)
    while at < load.seconds:
        yield at
        at += rng.expovariate(load.value)
