"""What a search for leftovers can say: found, or not known. An unanswered question is never "nothing there". Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from provision.naming import PREFIX, TAG, bucket_prefix, resource_name

GLOBAL = "global"  # the region of what an account has only once
Argument = str | bool | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """One API call, in the API's own names: it can be executed, and `command` is the cloud's command line for it."""

    service: str
    operation: str
    arguments: tuple[tuple[str, Argument], ...]
    command: str


@dataclass(frozen=True, slots=True)
class EmptyBucket:
    """Deletes every object and version of a bucket, which no single API call does."""

    bucket: str
    command: str


Step = Call | EmptyBucket


@dataclass(frozen=True, slots=True)
class Leftover:
    """One resource that still exists.

    `usd_per_hour`: None = unknown, 0.0 = free while it is as it is. `steps` delete it, in this order. `going`: the
    cloud is already deleting it. `weights`: the disk that may outlive its machine.
    """

    kind: str
    id: str
    region: str
    usd_per_hour: float | None
    steps: tuple[Step, ...]
    going: bool = False
    weights: bool = False

    @property
    def delete_command(self) -> str:
        """For a shell."""
        return " && ".join(step.command for step in self.steps)

    def __str__(self) -> str:
        price = "price unknown" if self.usd_per_hour is None else f"${self.usd_per_hour:.3f}/h"
        return f"{self.kind} {self.id} ({self.region}, {price}{', being deleted' if self.going else ''})"


@dataclass(frozen=True, slots=True)
class Unknown:
    """A kind that could not be asked for, why, and the permission that the question needs."""

    kind: str
    reason: str
    permission: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """The answer for one deployment. `kept`: disks of weights that the user wanted to keep; they are no leftovers."""

    cloud: str
    region: str
    name: str
    found: tuple[Leftover, ...] = ()
    unknown: tuple[Unknown, ...] = ()
    kept: tuple[Leftover, ...] = field(default=())

    @property
    def is_clean(self) -> bool:
        """Proven: every question was answered, and each answer was "none"."""
        return not self.found and not self.unknown

    @property
    def usd_per_hour(self) -> float | None:
        """What all that was found bills, kept disks included; None when a part of it is not known."""
        prices = [item.usd_per_hour for item in (*self.found, *self.kept)]
        known = [price for price in prices if price is not None]
        return None if self.unknown or len(known) < len(prices) else sum(known)


def describe(sweep: Sweep) -> str:
    """The proof in words: one line when nothing is left, else every resource with the command that deletes it."""
    count = len(sweep.found)
    lines = [f"{count} {'resource' if count == 1 else 'resources'} left, {_bill(sweep)}"]
    for item in sweep.found:
        lines += [f"  {item}", f"    {item.delete_command}"]
    for item in sweep.kept:
        lines += [f"kept as asked: {item}", f"    {item.delete_command}"]
    if sweep.unknown:
        lines.append("unknown, because the cloud did not answer (this is not a proof that nothing is there):")
    for reason, kinds in _by_reason(sweep.unknown).items():
        lines.append(f"  {', '.join(kinds)}: {reason}")
    return "\n".join(lines)


def _bill(sweep: Sweep) -> str:
    total = sweep.usd_per_hour
    if total is not None:
        return f"${total:.2f}/h" if total == 0 or total >= 0.01 else f"${total:.4f}/h"
    known = sum(item.usd_per_hour or 0.0 for item in (*sweep.found, *sweep.kept))
    return f"at least ${known:.2f}/h, the rest unknown" if known else "price unknown"


def _by_reason(unknown: Iterable[Unknown]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item in unknown:
        found.setdefault(item.reason, []).append(item.kind)
    return found


def in_order(found: Iterable[Leftover], order: Iterable[str]) -> tuple[Leftover, ...]:
    """By the kinds' place in `order`, so that each is deleted before what it depends on; each resource once."""
    rank = {kind: place for place, kind in enumerate(order)}
    unique = {(item.kind, item.id): item for item in found}
    return tuple(sorted(unique.values(), key=lambda item: (rank[item.kind], item.id)))


def is_ours(deployment: str, resource: str, tags: Mapping[str, str], parts: Iterable[str]) -> bool:
    """Whether a resource with this name and these tags belongs to the deployment.

    The tag decides where there is one: by name alone, `deployctl-a-b-vm` could be the `vm` of `a-b` or the `b-vm`
    of `a`. Without a tag the name must end in a part that the program gives, or be this deployment's mailbox.
    """
    if TAG in tags:
        return tags[TAG] == deployment
    if not resource.startswith(PREFIX):
        return False
    return resource in {resource_name(deployment, part) for part in parts} or is_mailbox(deployment, resource)


def is_mailbox(deployment: str, bucket: str) -> bool:
    """Whether a bucket's name is the deployment's prefix and random hex."""
    return re.fullmatch(re.escape(bucket_prefix(deployment)) + r"[0-9a-f]+", bucket) is not None
