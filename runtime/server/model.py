"""The served model's tokenizer, loaded as soon as the agent has put the weights in place."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from runtime.deployment import decode_weights
from runtime.server.tokenizer import ModelTokenizer, TokenizerError

logger = logging.getLogger(__name__)

WEIGHTS = "weights.json"
POLL_S = 0.2


class Model:
    """Holds `tokenizer` once it is there. `error` and `hint` say why it is not."""

    def __init__(self, release: Path, pool: ThreadPoolExecutor) -> None:
        self._path = release / WEIGHTS
        self._pool = pool
        self.tokenizer: ModelTokenizer | None = None
        self.error: str | None = None
        self.hint: str | None = None

    async def load(self) -> None:
        """Waits for `weights.json`, then loads off the event loop. A failed load is tried again when the file
        changes, so that the agent can put a broken folder right."""
        tried = 0
        loop = asyncio.get_running_loop()
        while self.tokenizer is None:
            version = _version(self._path)
            if version != tried and version != 0:
                tried = version
                await loop.run_in_executor(self._pool, self._load)
            else:
                await asyncio.sleep(POLL_S)

    def _load(self) -> None:
        try:
            folder = Path(decode_weights(self._path.read_bytes()).path)
            self.tokenizer = ModelTokenizer.load(folder)
        except (TokenizerError, OSError, msgspec.DecodeError) as error:
            logger.error("the tokenizer cannot be loaded: %s", error)
            self.error = f"the tokenizer cannot be loaded: {error}"
            self.hint = "the model's folder needs tokenizer.json; deploy again or choose another model"
        else:
            logger.info("tokenizer of %s loaded", folder)
            self.error = self.hint = None


def _version(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
