"""What a preflight found, and what it decided. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from provision.errors import PlanError
from provision.images import Image, ImageChoice
from provision.stack_settings import Placement

Level = Literal["error", "warning", "ok"]
CANDIDATES = "candidates: "  # begins the line by which the program tells deployctl where it may try


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked. `next_command`: what to type about it."""

    level: Level
    subject: str
    text: str
    next_command: str | None = None

    def __str__(self) -> str:
        hint = f"; next: {self.next_command}" if self.next_command else ""
        return f"{self.subject}: {self.text}{hint}"


@dataclass(frozen=True, slots=True)
class Preflight:
    """What is known before anything is bought.

    `candidates`: where the machine may be tried, best first. `network_zones`: the zones that get a subnet. `image` is
    None only where `findings` hold an error about it. `usd_per_hour`: the whole deployment, None = unknown;
    `price_source` says where the number comes from.
    """

    findings: tuple[Finding, ...]
    candidates: tuple[Placement, ...]
    network_zones: tuple[str, ...]
    choice: ImageChoice
    image: Image | None
    usd_per_hour: float | None
    price_source: str

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(item for item in self.findings if item.level == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(item for item in self.findings if item.level == "warning")

    def candidates_line(self) -> str:
        """The candidates as one line of the program's log."""
        return CANDIDATES + " ".join(str(item) for item in self.candidates)

    def stop_on_errors(self) -> None:
        """Raises PlanError with every error, each with its next command."""
        if not self.errors:
            return
        count = len(self.errors)
        lines = [f"{item.subject}: {item.text}" for item in self.errors]
        commands = [item.next_command for item in self.errors if item.next_command]
        raise PlanError(
            "this deployment cannot work" if count == 1 else f"this deployment cannot work, for {count} reasons",
            why="\n".join(lines),
            next_command="\n".join(commands) or "deployctl plan",
        )


def read_candidates(line: str) -> tuple[Placement, ...]:
    """The candidates of a line of the program's log; none for any other line."""
    if not line.startswith(CANDIDATES):
        return ()
    pairs = (item.partition("/") for item in line.removeprefix(CANDIDATES).split())
    return tuple(Placement(instance_type, zone) for instance_type, slash, zone in pairs if slash)
