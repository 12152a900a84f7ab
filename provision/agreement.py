"""Whose config counts, when several laptops change one stack.

A stack's config is a file on each laptop; the program exports what the last update was asked. What this laptop
and the stack said when they last agreed is noted here, so that a file that another laptop has outrun is told from one
that its user has edited.

    here is as noted, the stack is not       another laptop has changed it: its config is taken over
    the stack is as noted, here is not       edited, or cut off, here: here counts
    neither is                               nobody knows: refused, with the differences
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from provision.backend import pulumi_root
from provision.fields import SECRETS
from provision.stack_settings import KEY_ROUND, KEYS, PROJECT, STOPPED, WOKEN_AT
from runtime.deployment import Note
from runtime.mailbox import write_atomic

Counts = Literal["same", "here", "there", "nobody knows"]
FROM_OUTPUTS = (STOPPED, WOKEN_AT, KEYS, KEY_ROUND)  # a command reads them from the last update's outputs anyway


class Agreed(Note, frozen=True):
    """Digests of the config here and of the stack's, when this laptop last saw that they belong together."""

    here: str
    there: str


def comparable(config: Mapping[str, str]) -> dict[str, str]:
    """The part of a stack's whole config that says what is asked for; secrets by their SHA-256."""
    ours = {key.partition(":")[2]: text for key, text in config.items() if key.startswith(f"{PROJECT}:")}
    dropped = {key.partition(":")[2] for key in FROM_OUTPUTS}
    return {name: _digest(text) if name in SECRETS else text for name, text in ours.items() if name not in dropped}


def asked_text(config: Mapping[str, str]) -> str:
    """What the program exports: the config of this update in a form that is the same for the same config."""
    return msgspec.json.encode(comparable(config), order="sorted").decode()


def decide(here: str, there: str | None, agreed: Agreed | None) -> Counts:
    """`here`, `there`: as `asked_text` gives them; None before the first update has ended."""
    if there is None:
        return "here"
    if here == there:
        return "same"
    if agreed is None:
        return "nobody knows"
    if agreed.there == _digest(there):
        return "here"
    return "there" if agreed.here == _digest(here) else "nobody knows"


def differences(here: str, there: str) -> list[str]:
    """One line per value that differs: "ttl: 8h there, 4h here"."""
    ours, theirs = (msgspec.json.decode(text, type=dict[str, str]) for text in (here, there))
    return [
        f"{name}: {_shown(name, theirs)} there, {_shown(name, ours)} here"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]


def agreed_file(name: str, folder: Path) -> Path:
    """`folder`: the Pulumi project's, which holds the stack's config on this laptop."""
    return pulumi_root() / "agreed" / f"{name}-{_digest(str(folder.resolve()))[:8]}.json"


def read_agreed(path: Path) -> Agreed | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Agreed)
    except (OSError, msgspec.DecodeError):
        return None


def note_agreed(path: Path, here: str, there: str | None) -> None:
    """From now on `here` and `there` belong together."""
    agreed = None if there is None else Agreed(here=_digest(here), there=_digest(there))
    if agreed is not None and agreed != read_agreed(path):
        write_atomic(path, msgspec.json.encode(agreed))


def _shown(name: str, values: Mapping[str, str]) -> str:
    if name not in values:
        return "not set"
    return "…" if name in SECRETS else values[name] or '""'


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
