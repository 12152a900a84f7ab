"""One rule: what proves a cause, the cause in one line, the fix in one line. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from provision.doctor.evidence import STATUS, Evidence

Look = Callable[[Evidence], str | None]
"""The line or number that proves the cause, None where there is no sign of it."""
MOST_QUOTED = 200  # characters of a proof
LOGS = ("boot", "agent", "server", "engine")


@dataclass(frozen=True, slots=True)
class Rule:
    """`sign`: where the proof is found, in words for the page. `fix`: "{name}" stands for the deployment."""

    name: str
    sign: str
    cause: str
    fix: str
    look: Look


@dataclass(frozen=True, slots=True)
class Finding:
    """A cause that is proven by `proof`."""

    rule: str
    cause: str
    fix: str
    proof: str


def diagnose(rules: Iterable[Rule], evidence: Evidence) -> tuple[Finding, ...]:
    """What the rules find, in their order: a cause stands before what follows from it."""
    found = []
    for rule in rules:
        proof = rule.look(evidence)
        if proof is not None:
            fix = rule.fix.replace("{name}", evidence.name)
            found.append(Finding(rule.name, rule.cause, fix, " ".join(proof.split())[:MOST_QUOTED]))
    return tuple(found)


def said(pattern: str, *sources: str) -> Look:
    """The newest line that matches, whatever the deployment does now. Without sources: status and all logs."""
    compiled = re.compile(pattern, re.IGNORECASE)

    def look(evidence: Evidence) -> str | None:
        for source in sources or (STATUS, *LOGS):
            lines = [line for line in evidence.lines(source) if compiled.search(line)]
            if lines:
                return f"{source}: {lines[-1]}"
        return None

    return look


def while_not_ready(look: Look) -> Look:
    """What is in a log of a deployment that serves has been overcome."""
    return lambda evidence: None if evidence.is_ready else look(evidence)


def all_of(first: Look, *others: Look) -> Look:
    """The first one's proof, where the others have one too."""
    return lambda evidence: first(evidence) if all(look(evidence) is not None for look in others) else None


def any_of(*looks: Look) -> Look:
    """The first proof there is."""

    def look(evidence: Evidence) -> str | None:
        return next((proof for each in looks if (proof := each(evidence)) is not None), None)

    return look
