"""What bears our tag in any region of a cloud, whichever Pulumi backend made it: the search of `ps --everywhere`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, Literal, Protocol, TypeVar

from provision.naming import TAG, WEIGHTS_TAG
from provision.sweep.model import Unknown

PARALLEL = 16  # questions at once: five kinds in thirty regions take seconds
MACHINE = "instance"
End = int | Literal["never", "unknown"]
A = TypeVar("A")  # one account in one region


class CannotSearchError(Exception):
    """The cloud cannot be asked at all: no SDK, no credentials."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """One resource with our tag.

    `made_at` and `ends` (when the cloud's own timer deletes it) in seconds since the epoch. `usd_per_hour`: None =
    unknown, 0.0 = free while it is as it is.
    """

    cloud: str
    region: str
    name: str
    kind: str
    id: str
    usd_per_hour: float | None
    state: str | None = None
    instance_type: str | None = None
    made_at: float | None = None
    ends: End = "never"


@dataclass(frozen=True, slots=True)
class Unasked:
    """A question that was not answered: nothing follows from it. `region` is None for the whole cloud."""

    cloud: str
    region: str | None
    kind: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Everywhere:
    """What all regions have answered."""

    regions: int
    found: tuple[Tagged, ...]
    unasked: tuple[Unasked, ...]


@dataclass(frozen=True, slots=True)
class Orphan:
    """All of one name in one region that no known stack owns.

    `state` is the machine's, "no machine" without one. `usd_per_hour` counts what is known, and is None when nothing
    is; `unpriced` names the rest.
    """

    cloud: str
    region: str
    name: str
    state: str
    instance_type: str | None
    made_at: float | None
    usd_per_hour: float | None
    unpriced: tuple[str, ...]
    ends: End
    resources: tuple[str, ...]  # as "instance i-0123"
    next_command: str


@dataclass(frozen=True, slots=True)
class Question(Generic[A]):
    """How a cloud is asked for one kind of thing; `permission` is what it needs, in the cloud's own words."""

    kind: str
    permission: str
    find: Callable[[A], Iterator[Tagged]]


class TagSearch(Protocol):
    """The questions about one account. Thread-safe."""

    @property
    def kinds(self) -> tuple[str, ...]: ...

    def regions(self) -> tuple[str, ...]:
        """Those of this account. Raises CannotSearchError."""
        ...

    def ask(self, region: str, kind: str) -> tuple[Tagged, ...] | Unknown: ...


def search_everywhere(clouds: Iterable[str], env: Mapping[str, str] | None = None) -> Everywhere:
    """Asks every region of each cloud. Raises nothing: what cannot be asked stands in `unasked`."""
    found: list[Tagged] = []
    unasked: list[Unasked] = []
    regions = 0
    for cloud in clouds:
        try:
            search = open_tag_search(cloud, os.environ if env is None else env)
            places = search.regions()
        except CannotSearchError as error:
            unasked.append(Unasked(cloud, None, None, str(error)))
            continue
        regions += len(places)
        questions = [(region, kind) for region in places for kind in search.kinds]
        with ThreadPoolExecutor(PARALLEL) as pool:
            answers = pool.map(lambda question, ask=search.ask: ask(*question), questions)
            for (region, kind), answer in zip(questions, answers, strict=True):
                if isinstance(answer, Unknown):
                    unasked.append(Unasked(cloud, region, kind, answer.reason))
                else:
                    found += answer
    return Everywhere(regions, tuple(found), tuple(unasked))


def open_tag_search(cloud: str, env: Mapping[str, str]) -> TagSearch:
    """Raises CannotSearchError without the cloud's extra. Nothing is asked yet."""
    try:
        if cloud == "aws":
            from provision.sweep.everywhere_aws import AwsTagSearch

            return AwsTagSearch()
        from provision.sweep.everywhere_alicloud import AlicloudTagSearch

        return AlicloudTagSearch(env)
    except ModuleNotFoundError as error:
        raise CannotSearchError(f"{error.name} is not installed: pip install 'deployctl[{cloud}]'") from error


def name_in(tags: Mapping[str, str]) -> str:
    """The name in the tags of a thing of ours."""
    return tags.get(TAG) or tags.get(WEIGHTS_TAG) or "unknown"


def orphans(found: Iterable[Tagged], is_known: Callable[[str, str, str], bool]) -> tuple[Orphan, ...]:
    """What no stack owns, one entry per name and region. `is_known` is asked with cloud, region and name. Pure."""

    def place(item: Tagged) -> tuple[str, str, str]:
        return (item.cloud, item.region, item.name)

    groups = groupby(sorted(found, key=place), key=place)
    return tuple(_orphan(*where, tuple(items)) for where, items in groups if not is_known(*where))


def _orphan(cloud: str, region: str, name: str, items: tuple[Tagged, ...]) -> Orphan:
    machines = [item for item in items if item.kind == MACHINE]
    prices = [item.usd_per_hour for item in items if item.usd_per_hour is not None]
    states = sorted({item.state or "unknown" for item in machines})
    types = sorted({item.instance_type for item in machines if item.instance_type})
    made = [item.made_at for item in machines if item.made_at is not None]
    return Orphan(
        cloud,
        region,
        name,
        state=", ".join(states) or "no machine",
        instance_type=", ".join(types) or None,
        made_at=min(made, default=None),
        usd_per_hour=sum(prices) if prices else None,
        unpriced=tuple(dict.fromkeys(item.kind for item in items if item.usd_per_hour is None)),
        ends=_last_end([item.ends for item in machines]),
        resources=tuple(f"{item.kind} {item.id}" for item in items),
        next_command=f"deployctl down {name} --cloud {cloud} --region {region}",
    )


def _last_end(ends: list[End]) -> End:
    """When the last of several machines ends."""
    known = [end for end in ends if isinstance(end, int)]
    if "never" in ends or not ends:
        return "never"
    return max(known) if len(known) == len(ends) else "unknown"
