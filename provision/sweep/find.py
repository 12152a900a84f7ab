"""The search: all questions of a cloud at once, repeated while the cloud itself is still deleting."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from provision.errors import MissingPartError, UsageError
from provision.sweep.model import Leftover, Sweep, Unknown, in_order

PARALLEL = 8
PAUSE_S = 5.0


class Search(Protocol):
    """The questions about one deployment in one region of one cloud. Raises nothing: a refusal is an Unknown."""

    kinds: tuple[str, ...]
    """In the order of deletion: what depends on something comes before it."""

    def ask(self, kind: str) -> tuple[Leftover, ...] | Unknown: ...

    def delete(self, leftover: Leftover) -> str | None:
        """Why it did not work; None when it did, or when the thing was gone already."""
        ...


def find_leftovers(
    cloud: str,
    region: str,
    name: str,
    *,
    keep_weights: bool = False,
    patience_s: float = 0.0,
    pause: Callable[[float], None] = time.sleep,
) -> Sweep:
    """Everything of deployment `name` that exists in `region`, and in the parts of the account that have no region.

    `keep_weights`: the disk of weights is reported as kept, not as left over. `patience_s`: how long to ask again, in
    seconds, while the cloud is still deleting something: what it held can be deleted only after it. Raises
    MissingPartError without the cloud's extra and UsageError for another word than aws or alicloud; every other failure
    is an unknown in the answer.
    """
    search = open_search(cloud, region, name)
    waited = 0.0
    while True:
        sweep = _sweep_once(search, Sweep(cloud, region, name), keep_weights)
        waits = any(item.going for item in sweep.found) and not sweep.unknown
        if not waits or waited + PAUSE_S > patience_s:
            return sweep
        pause(PAUSE_S)
        waited += PAUSE_S


def delete_leftovers(sweep: Sweep) -> dict[str, str]:
    """Deletes what was found, in the order of dependencies; kept disks stay. Returns the reason for each that stayed.

    A NAT gateway or an instance takes minutes to go, and what it holds goes after it: sweep and delete again until
    nothing is left. Raises MissingPartError, UsageError.
    """
    search = open_search(sweep.cloud, sweep.region, sweep.name)
    reasons = {f"{item.kind} {item.id}": search.delete(item) for item in sweep.found if not item.going}
    return {what: why for what, why in reasons.items() if why is not None}


def open_search(cloud: str, region: str, name: str) -> Search:
    """Raises MissingPartError, UsageError. Nothing is asked yet."""
    try:
        if cloud == "aws":
            from provision.sweep.aws import AwsSearch

            return AwsSearch(region, name)
        if cloud == "alicloud":
            from provision.sweep.alicloud import AlicloudSearch

            return AlicloudSearch(region, name)
    except ModuleNotFoundError as error:
        raise MissingPartError(
            f"{cloud} cannot be asked what is left",
            why=f"{error.name} is not installed",
            next_command=f"pip install 'deployctl[{cloud}]'",
        ) from error
    raise UsageError(f"{cloud!r} is not a cloud", why="aws and alicloud are")


def _sweep_once(search: Search, asked: Sweep, keep_weights: bool) -> Sweep:
    with ThreadPoolExecutor(PARALLEL) as pool:
        answers = list(pool.map(search.ask, search.kinds))
    found = in_order((item for answer in answers if not isinstance(answer, Unknown) for item in answer), search.kinds)
    return Sweep(
        asked.cloud,
        asked.region,
        asked.name,
        found=tuple(item for item in found if not (keep_weights and item.weights)),
        unknown=tuple(answer for answer in answers if isinstance(answer, Unknown)),
        kept=tuple(item for item in found if keep_weights and item.weights),
    )
