"""The machine's own record of what it was told, and by whom: for each change a line in its journal and in audit.log.

2026-07-01T12:00:00.123Z keys: default, alice; asked by ada@lovelace: deployctl keys add alice
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from runtime.agent.files import PRIVATE, Access
from runtime.agent.logs import stamp
from runtime.bucket import BucketError
from runtime.deployment import decode_keys
from runtime.mailbox import ASKED, CURRENT, KEYS, LIFE, Mailbox, decode_asked, decode_current, decode_life

RECENT_S = 3600.0  # an older order is not the one that has just arrived
MOST_BYTES = 2**20  # of audit.log; one older file is kept


def tell_release(data: bytes) -> str:
    return decode_current(data).release


def tell_keys(data: bytes) -> str:
    """Names and limits; never a digest."""
    return ", ".join(key.name + ("" if key.expires_at is None else " (old)") for key in decode_keys(data)) or "none"


def tell_life(data: bytes) -> str:
    life = decode_life(data)
    end = "never ends" if life.expires_at is None else f"ends at {stamp(life.expires_at)}"
    return end + (f", stops after {life.idle_stop_s} s without a request" if life.idle_stop_s else "")


WATCHED: tuple[tuple[str, str, Callable[[bytes], str]], ...] = (
    ("release", CURRENT, tell_release),
    ("keys", KEYS, tell_keys),
    ("life", LIFE, tell_life),
)


class Audit:
    """`check` often. What was seen before is kept in `folder`, so that a restart tells nothing twice."""

    def __init__(
        self, mailbox: Mailbox, folder: Path, access: Access = PRIVATE, clock: Callable[[], float] = time.time
    ) -> None:
        self._mailbox = mailbox
        self._log = folder / "audit.log"
        self._seen_file = folder / "audit.json"
        self._access = access
        self._clock = clock
        self._seen = self._read_seen()

    def check(self) -> None:
        """Raises OSError when the line cannot be written."""
        for what, key, tell in WATCHED:
            data = self._mailbox.get(key)
            if data is None:
                continue
            digest = hashlib.sha256(data).hexdigest()
            if self._seen.get(key) == digest:
                continue
            self._write(f"{what}: {_told(tell, data)}; asked by {self._asked()}")
            self._seen[key] = digest
            self._access.write(self._seen_file, msgspec.json.encode(self._seen))

    def _write(self, text: str) -> None:
        print(f"audit: {text}", file=sys.stderr, flush=True)
        old = self._log.read_bytes() if self._log.exists() else b""
        if len(old) > MOST_BYTES:
            self._access.write(self._log.with_suffix(".log.1"), old)
            old = b""
        self._access.write(self._log, old + f"{stamp(self._clock())} {text}\n".encode())

    def _asked(self) -> str:
        """Nobody is named where the last order is older than what has arrived: a plain `pulumi up` leaves none."""
        try:
            data = self._mailbox.get(ASKED)
            order = None if data is None else decode_asked(data)
        except (BucketError, msgspec.DecodeError):
            order = None
        if order is None or abs(self._clock() - order.at) > RECENT_S:
            return "somebody without deployctl"
        return f"{order.by}: {order.command}"

    def _read_seen(self) -> dict[str, str]:
        try:
            return msgspec.json.decode(self._seen_file.read_bytes(), type=dict[str, str])
        except (FileNotFoundError, msgspec.DecodeError):
            return {}


def _told(tell: Callable[[bytes], str], data: bytes) -> str:
    try:
        return tell(data)
    except msgspec.DecodeError as error:
        return f"cannot be read ({error})"
