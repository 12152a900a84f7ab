"""The API keys of a deployment: who may ask, how much, and until when. Pure; stored by provision.key_stores.

The keys are one list, as `keys.json` has it. Entries of one name are one key before and after a rotation: only the
current one has no end. So a name keeps its limits, its use and its place in the metrics.

    default  9f86…                       current
    default  60303…  ends at 1790000000  the one before, until its grace has passed
    alice    fd61…   rpm 60              current
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import msgspec

from provision.errors import NotFoundError, UsageError
from runtime.deployment import ApiKey

DEFAULT_KEY = "default"  # deployctl's own: `up` makes it; endpoint, chat and the proof use it
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
Keys = tuple[ApiKey, ...]


def digest(secret: str) -> str:
    """What a machine knows of a key. SHA-256 is enough for one that is random."""
    return hashlib.sha256(secret.encode()).hexdigest()


def besides_default(keys: Sequence[ApiKey]) -> Keys:
    """All but deployctl's own current key: what is kept where that one is made anew."""
    return tuple(key for key in keys if key.name != DEFAULT_KEY or key.expires_at is not None)


def living(keys: Sequence[ApiKey], now: float) -> Keys:
    """Without those whose grace has passed. `now`: seconds since the epoch."""
    return tuple(key for key in keys if key.expires_at is None or key.expires_at > now)


def current(keys: Sequence[ApiKey], name: str) -> ApiKey:
    """Raises NotFoundError."""
    for key in keys:
        if key.name == name and key.expires_at is None:
            return key
    names = ", ".join(sorted({key.name for key in keys}))
    raise NotFoundError(f"there is no key called {name}", why=f"there is: {names}", next_command="deployctl keys list")


def add(keys: Sequence[ApiKey], key: ApiKey, now: float) -> Keys:
    """Raises UsageError for a name that is taken or none."""
    if not NAME.fullmatch(key.name):
        raise UsageError(
            f"{key.name!r} is not a name of a key",
            why="1 to 32 small letters, digits, '.', '_' or '-'; it appears in logs and metrics, the key never does",
            next_command="deployctl keys add alice",
        )
    kept = living(keys, now)
    if any(other.name == key.name for other in kept):
        raise UsageError(
            f"there is a key called {key.name} already",
            next_command=f"deployctl keys rotate {key.name}, or another name",
        )
    return (*kept, key)


def rotate(keys: Sequence[ApiKey], name: str, sha256: str, *, grace_s: int, now: float) -> Keys:
    """The key `name` gets another secret and keeps its limits; the old secret is good for `grace_s` seconds more.

    Raises NotFoundError.
    """
    old = current(keys, name)
    new = msgspec.structs.replace(old, sha256=sha256)
    ended = msgspec.structs.replace(old, expires_at=int(now) + grace_s)
    changed = [item for key in living(keys, now) for item in ((new, ended) if key is old else (key,))]
    return living(changed, now)


def revoke(keys: Sequence[ApiKey], name: str, now: float) -> Keys:
    """Without the key `name`, the ones before it included. Raises NotFoundError, and UsageError for deployctl's own."""
    current(keys, name)
    if name == DEFAULT_KEY:
        raise UsageError(
            f"the key {DEFAULT_KEY} cannot be revoked",
            why="deployctl itself asks with it: chat, endpoint, status of a redeploy",
            next_command="deployctl keys rotate",
        )
    return tuple(key for key in living(keys, now) if key.name != name)
