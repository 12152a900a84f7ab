"""Tells the agent when the last request was: the modification time of one file, kept fresh while there are requests."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from runtime.handover import ACTIVITY
from runtime.server.engine_client import EngineClient
from runtime.server.metrics import Metrics

LOOK_S = 5.0


async def keep_activity(folder: Path, engine: EngineClient, metrics: Metrics, look_s: float = LOOK_S) -> None:
    """Runs until it is cancelled. Before the first request there is no file, or that of an earlier server."""
    path = folder / ACTIVITY
    told = metrics.last_request_at
    while True:
        await asyncio.sleep(look_s)
        now = time.monotonic()
        last = now if engine.open_requests else metrics.last_request_at
        if last > told:
            told = last
            at = time.time() - (now - last)
            path.touch(mode=0o640)
            os.utime(path, (at, at))
