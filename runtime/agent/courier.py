"""The agent's side of a mailbox that may be slow or away: nothing that the phases do waits for the store.

    agent ── put ──► outbox ──┐                      ┌── watched keys ──► get
      │                       └─ sync, in a thread ──┘        │
      └── status ──► mirror ◄──────────── keys ───────────────┘      files that the server reads

`sync` sends what waits and looks at the watched keys. A store that cannot be reached changes nothing: what was known
stays, also over a reboot (objects of `release/` are kept on disk), and what was put is sent later, the newest only.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from runtime.agent.files import PRIVATE, Access
from runtime.bucket import BucketError
from runtime.mailbox import CURRENT, KEYS, LIFE, Mailbox, write_atomic

WATCHED = (CURRENT, KEYS, LIFE)
KEPT_PREFIX, KEPT_SUFFIX = "release/", ".json"  # no secret and nothing large is among these
DENIED = "AccessDenied"  # also the answer for an object that is missing, to a role that may not list


class Courier:
    """A Mailbox over another one. Watched keys are answered from memory; of them, a missing object says nothing new,
    because an object that is replaced may be away for a moment.

    `mirrors`: files on this machine that follow an object, whoever writes it.
    """

    def __init__(
        self, remote: Mailbox, cache: Path, mirrors: Mapping[str, Path] | None = None, access: Access = PRIVATE
    ) -> None:
        self._remote = remote
        self._cache = cache
        self._mirrors = dict(mirrors or {})
        self._access = access
        self._lock = threading.Lock()
        self._outbox: dict[str, bytes] = {}
        self._known = {key: data for key in WATCHED if (data := self._kept(key)) is not None}
        self._denied: set[str] = set()
        self._away = False
        for key, data in self._known.items():
            self._mirror(key, data)

    def get(self, key: str) -> bytes | None:
        """Raises BucketError for an object that is neither watched nor kept when the store is away."""
        if key in WATCHED:
            return self._known.get(key)
        try:
            data = self._fetch(key)
        except BucketError:
            if (kept := self._kept(key)) is not None:
                return kept
            raise
        if data is not None:
            self._keep(key, data)
        return data

    def put(self, key: str, data: bytes) -> None:
        """Is sent with the next `sync` that reaches the store, unless a newer one has taken its place."""
        self._mirror(key, data)
        with self._lock:
            self._outbox[key] = data

    def keys(self, prefix: str) -> list[str]:
        return self._remote.keys(prefix)

    def sync(self) -> None:
        """One exchange with the store; never raises because of it."""
        try:
            self._send()
            self._look()
        except BucketError as error:
            if not self._away:
                self._say(f"the mailbox cannot be reached: {error}; going on without it, and trying again")
            self._away = True
            return
        if self._away:
            self._say("the mailbox can be reached again")
        self._away = False

    def _send(self) -> None:
        while True:
            with self._lock:
                if not self._outbox:
                    return
                key, data = next(iter(self._outbox.items()))
            self._remote.put(key, data)
            with self._lock:
                if self._outbox.get(key) is data:
                    del self._outbox[key]

    def _look(self) -> None:
        for key in WATCHED:
            data = self._fetch(key)
            if data is None or data == self._known.get(key):
                continue
            self._keep(key, data)
            self._mirror(key, data)
            self._known[key] = data

    def _fetch(self, key: str) -> bytes | None:
        try:
            return self._remote.get(key)
        except BucketError as error:
            if error.code != DENIED:
                raise
            if key not in self._denied:
                self._say(f"{key} is not there, or the machine's role may not read it")
            self._denied.add(key)
            return None

    def _mirror(self, key: str, data: bytes) -> None:
        path = self._mirrors.get(key)
        if path is not None:
            self._access.write(path, data)

    def _keep(self, key: str, data: bytes) -> None:
        if not (key.startswith(KEPT_PREFIX) and key.endswith(KEPT_SUFFIX)):
            return
        try:
            write_atomic(self._cache / key, data)
        except OSError as error:  # a full disk is told by the phases; the object itself is here
            self._say(f"{key} cannot be kept for a time without the mailbox: {error}")

    def _kept(self, key: str) -> bytes | None:
        try:
            return (self._cache / key).read_bytes()
        except FileNotFoundError:
            return None

    @staticmethod
    def _say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)
