"""Statements and policies, and how statements are packed into policies of the allowed size. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_CHARACTERS = 6144  # of a managed policy, without white space: the same on both clouds

Condition = Mapping[str, Mapping[str, str | tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class Statement:
    """What is allowed, on what, and only when. `sid` says what for; RAM has no such field, so it stays out there."""

    sid: str
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    condition: Condition = field(default_factory=dict)

    def as_json(self, *, with_sid: bool) -> dict[str, Any]:
        found: dict[str, Any] = {"Sid": self.sid} if with_sid else {}
        found |= {"Effect": "Allow", "Action": sorted(self.actions), "Resource": list(self.resources)}
        return found | ({"Condition": self.condition} if self.condition else {})


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy. `name` is what to call it; `statements` with their reasons."""

    name: str
    version: str
    statements: tuple[Statement, ...]
    with_sid: bool

    @property
    def document(self) -> dict[str, Any]:
        return {
            "Version": self.version,
            "Statement": [statement.as_json(with_sid=self.with_sid) for statement in self.statements],
        }

    @property
    def size(self) -> int:
        """Characters that count against the limit."""
        return len(json.dumps(self.document, separators=(",", ":")))


def pack(name: str, version: str, statements: Iterable[Statement], *, with_sid: bool) -> tuple[Policy, ...]:
    """Statements in their order, in as few policies as the order allows, named `<name>`, or `<name>-1`, `<name>-2`, …

    Raises ValueError for a statement that is too long by itself.
    """
    groups: list[list[Statement]] = [[]]
    for statement in statements:
        if Policy(name, version, (*groups[-1], statement), with_sid).size > MAX_CHARACTERS:
            groups.append([])
        groups[-1].append(statement)
        if Policy(name, version, tuple(groups[-1]), with_sid).size > MAX_CHARACTERS:
            raise ValueError(f"the statement {statement.sid} is longer than a policy may be")
    if len(groups) == 1:
        return (Policy(name, version, tuple(groups[0]), with_sid),)
    return tuple(
        Policy(f"{name}-{number}", version, tuple(group), with_sid) for number, group in enumerate(groups, start=1)
    )
