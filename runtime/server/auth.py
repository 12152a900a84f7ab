"""API keys: known only by their SHA-256, compared in constant time, reloaded when `keys.json` changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from runtime.deployment import ApiKey, decode_keys

logger = logging.getLogger(__name__)


class KeyRing:
    """The keys that `keys.json` holds now. A missing file means no key, so nobody is let in.

    `clock`: seconds since the epoch, by which a rotated key comes to its end.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._version: tuple[int, int, int] | None = None
        self._keys: list[ApiKey] = []

    def match(self, authorization: str | None) -> ApiKey | None:
        """The key that an `Authorization: Bearer …` header carries, None for any other header."""
        self._reload()
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        digest = hashlib.sha256(secret.strip().encode("latin-1", "replace")).hexdigest()
        found = None
        for key in self._keys:  # every key, so that the time does not tell which one matched
            if hmac.compare_digest(digest, key.sha256.lower()):
                found = key
        return None if found is not None and self._is_over(found) else found

    def _is_over(self, key: ApiKey) -> bool:
        return key.expires_at is not None and self._clock() >= key.expires_at

    def _reload(self) -> None:
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            if self._keys:
                logger.warning("%s is gone: every request is refused until it is back", self._path)
            self._keys, self._version = [], None
            return
        version = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if version == self._version:
            return
        try:
            keys = decode_keys(self._path.read_bytes())
        except msgspec.DecodeError as error:
            logger.error("%s: %s; the %d keys read before stay valid", self._path, error, len(self._keys))
        else:
            self._keys = keys
            logger.info("%s: %d keys", self._path, len(keys))
        self._version = version
