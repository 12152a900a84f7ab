"""Releases that a deployment can go back to: what its machine says that it keeps, and which one `rollback` means."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from provision.errors import NotFoundError, StateError
from provision.progress import format_seconds
from runtime.mailbox import RELEASES, ReleaseEntry, decode_releases

COLUMNS = ("RELEASE", "STATE", "MODEL", "MAX LEN", "DTYPE", "VERSION", "SERVED LAST", "WHY NOT")


def read_releases(get: Callable[[str], bytes | None], name: str) -> list[ReleaseEntry]:
    """Newest first; empty before the machine has said anything. `get`: reads its mailbox. Raises StateError."""
    data = get(RELEASES)
    try:
        return [] if data is None else decode_releases(data)
    except msgspec.DecodeError as error:
        raise StateError(
            f"what the machine of {name} says about its releases cannot be read",
            why=f"{RELEASES}: {error}",
            next_command=f"deployctl logs {name} --agent",
        ) from error


def choose_release(entries: Sequence[ReleaseEntry], wanted: str | None, current: str | None, name: str) -> ReleaseEntry:
    """The release called `wanted`, else the one that served last before the `current` one. Raises NotFoundError."""
    again = f"deployctl releases list {name}"
    if wanted is None:
        served = [entry for entry in entries if entry.state == "ready" and entry.release != current]
        if not served:
            why = "no other release that has served is kept"
            raise NotFoundError(f"{name} has no release to go back to", why=why, next_command=again)
        return max(served, key=lambda entry: entry.ready_at or 0.0)
    found = next((entry for entry in entries if entry.release == wanted), None)
    if found is None:
        kept = ", ".join(entry.release for entry in entries) or "none"
        raise NotFoundError(f"{name} keeps no release {wanted}", why=f"it keeps: {kept}", next_command=again)
    if found.ready_at is None or found.state == "failed":
        why = found.error or "it has never been ready"
        raise NotFoundError(f"{name} cannot go back to release {wanted}", why=why, next_command=again)
    return found


def release_rows(entries: Sequence[ReleaseEntry], now: float) -> list[tuple[str, ...]]:
    """Cells for people, one row per release. `now`: seconds since the epoch."""
    return [
        (
            entry.release,
            entry.state,
            entry.model,
            str(entry.max_model_len),
            " ".join(filter(None, (entry.dtype, entry.quantization))),
            entry.wheel or "installed",
            "never" if entry.ready_at is None else f"{format_seconds(max(0.0, now - entry.ready_at))} ago",
            entry.error or "",
        )
        for entry in entries
    ]
