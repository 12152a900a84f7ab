"""What a stack's config holds beside the spec: decisions that were made once and must stay.

deployctl:expires_at   seconds since the epoch when the cloud deletes the machine; written by up, extend, wake
deployctl:stopped      "true" while the machine is switched off, so that computing is not billed; written by stop, wake
deployctl:woken_at     seconds since the epoch when it was switched on last after that; written by wake
deployctl:placement    "<instance type>/<zone>": the candidate that has capacity; written by `deployctl up`
deployctl:weights_disk id of a weights disk that `down --keep-disk` left: it is attached, and no new one is made
deployctl:keys         JSON, as in keys.json: the keys beside deployctl's own, by their SHA-256; written by `keys`
deployctl:key_round    how often deployctl's own key was made anew; written by `keys rotate`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from provision.spec import Problem, SpecError
from runtime.deployment import ApiKey, decode_keys

PROJECT = "deployctl"
EXPIRES_AT = f"{PROJECT}:expires_at"
STOPPED = f"{PROJECT}:stopped"
WOKEN_AT = f"{PROJECT}:woken_at"
PLACEMENT = f"{PROJECT}:placement"
WEIGHTS_DISK = f"{PROJECT}:weights_disk"
KEYS = f"{PROJECT}:keys"
KEY_ROUND = f"{PROJECT}:key_round"
SETTINGS = (EXPIRES_AT, STOPPED, WOKEN_AT, PLACEMENT, WEIGHTS_DISK, KEYS, KEY_ROUND)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where to try: one instance type in one zone."""

    instance_type: str
    zone: str

    def __str__(self) -> str:
        return f"{self.instance_type}/{self.zone}"


@dataclass(frozen=True, slots=True)
class StackSettings:
    """None = not decided yet: the program takes the first candidate, and counts the TTL from its first run."""

    expires_at: int | None = None
    placement: Placement | None = None
    weights_disk: str | None = None
    keys: tuple[ApiKey, ...] = ()
    key_round: int = 0
    stopped: bool = False
    woken_at: int | None = None

    def as_config(self) -> dict[str, str]:
        """Config keys and values of what is decided."""
        found: dict[str, str] = {}
        if self.expires_at is not None:
            found[EXPIRES_AT] = str(self.expires_at)
        if self.stopped:
            found[STOPPED] = "true"
        if self.woken_at is not None:
            found[WOKEN_AT] = str(self.woken_at)
        if self.placement is not None:
            found[PLACEMENT] = str(self.placement)
        if self.weights_disk is not None:
            found[WEIGHTS_DISK] = self.weights_disk
        if self.keys:
            found[KEYS] = keys_text(self.keys)
        if self.key_round:
            found[KEY_ROUND] = str(self.key_round)
        return found


def keys_text(keys: tuple[ApiKey, ...]) -> str:
    """Keys as one line of config."""
    return msgspec.json.encode(keys).decode()


def read_keys(text: str) -> tuple[ApiKey, ...]:
    """The reverse. Raises msgspec.DecodeError."""
    return tuple(decode_keys(text.encode()))


def split_config(config: Mapping[str, str]) -> tuple[dict[str, str], StackSettings]:
    """(values of the spec, settings) from a stack's whole config; keys of other projects are left out.

    Raises SpecError for settings that nobody could have written.
    """
    ours = {key: value for key, value in config.items() if key.startswith(f"{PROJECT}:")}
    expires, placed = ours.pop(EXPIRES_AT, None), ours.pop(PLACEMENT, None)
    stopped, woken = ours.pop(STOPPED, None), ours.pop(WOKEN_AT, None)
    weights_disk = ours.pop(WEIGHTS_DISK, None)
    keys, key_round = ours.pop(KEYS, None), ours.pop(KEY_ROUND, None)
    problems = []
    if expires is not None and not expires.isdecimal():
        problems.append(Problem("expires_at", f"{expires!r} is not a time in seconds since 1970", where=EXPIRES_AT))
    if stopped not in (None, "true", "false"):
        problems.append(Problem("stopped", f"{stopped!r} is neither true nor false", where=STOPPED))
    if woken is not None and not woken.isdecimal():
        problems.append(Problem("woken_at", f"{woken!r} is not a time in seconds since 1970", where=WOKEN_AT))
    instance_type, slash, zone = (placed or "").partition("/")
    if placed is not None and not (instance_type and slash and zone):
        problems.append(Problem("placement", f"{placed!r} is not <instance type>/<zone>", where=PLACEMENT))
    if key_round is not None and not key_round.isdecimal():
        problems.append(Problem("key_round", f"{key_round!r} is not a number", where=KEY_ROUND))
    others: tuple[ApiKey, ...] = ()
    try:
        others = read_keys(keys) if keys else ()
    except msgspec.DecodeError as error:
        problems.append(Problem("keys", f"{error}; `deployctl keys` writes it", where=KEYS))
    if problems:
        raise SpecError(problems)
    return ours, StackSettings(
        expires_at=int(expires) if expires else None,
        stopped=stopped == "true",
        woken_at=int(woken) if woken else None,
        placement=Placement(instance_type, zone) if placed else None,
        weights_disk=weights_disk or None,
        keys=others,
        key_round=int(key_round) if key_round else 0,
    )
