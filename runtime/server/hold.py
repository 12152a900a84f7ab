"""Requests that come while a release takes over wait here, and the question that proves its engine.

    gate ──► Hold.pass_through ──waits──► the routes
                 ▲ opened when the agent says so; 503 when a request has waited long enough, or the release has failed

Invariant: `_held` has one entry for each request that waits, in the order in which they came.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from starlette.types import Message, Receive

from runtime.handover import HANDOVER, PROBED, Handover, Probed, ProcessId, read_handover
from runtime.ipc import Sampling, Submit
from runtime.mailbox import write_atomic
from runtime.server import limits
from runtime.server.engine_client import ClientGoneError, EngineClient
from runtime.server.errors import ApiError, Unready, not_ready, overloaded
from runtime.server.model import Model

logger = logging.getLogger(__name__)

POLL_S = 0.05  # between two looks at the handover while requests wait
IDLE_POLL_S = 0.25
MAX_HELD_BYTES = 64 * 2**20  # bodies of all requests that wait
UNPROVED_S = 120.0  # an engine that is ready waits no longer for an agent that does not come back
PROBE_TEXT = "The capital of France is Paris. The capital of Italy is"
PROBE_TOKENS = 32
_PROBE_SALT = b"deployctl-probe"


class Hold:
    """`release` and `run_dir` of this server. `max_s`: how long one request may wait, in seconds."""

    def __init__(
        self, run_dir: Path, release: str, engine: EngineClient, model: Model, max_s: float, before: ProcessId | None
    ) -> None:
        self._run_dir = run_dir
        self._release = release
        self._engine = engine
        self._model = model
        self._max_s = max_s
        self._before = before
        self._held: dict[asyncio.Future[None], None] = {}
        self._held_bytes = 0
        self._seen: tuple[int, int] | None = None
        self._handover: Handover | None = None
        self._ready_at: float | None = None
        self._asked: str | None = None
        self._stopped: ApiError | None = None
        self._probing: asyncio.Task[None] | None = None
        self._look()

    @property
    def on(self) -> bool:
        """A redeploy goes on: who comes now waits."""
        return self._handover is not None and self._handover.held

    @property
    def held(self) -> int:
        """Requests that wait."""
        return len(self._held)

    def unready(self) -> Unready | None:
        """Why an engine that is ready is not asked yet."""
        return Unready("serve", percent=100.0) if self.on else None

    async def pass_through(self, receive: Receive, unready: Callable[[], Unready | None]) -> Receive:
        """Waits while there is a hold; returns what the request's body is then read from.

        Raises ApiError 503 after `max_s`, or when the release has failed, ApiError 429 when too many wait, and
        ClientGoneError.
        """
        if not self.on:
            return receive
        if len(self._held) >= limits.MAX_QUEUED:
            raise overloaded(f"{len(self._held)} requests wait for the new release, which is the limit")
        opened = asyncio.get_running_loop().create_future()
        self._held[opened] = None
        taken: list[Message] = []
        try:
            async with asyncio.timeout(self._max_s):
                await self._take_until(opened, receive, taken)
        except TimeoutError:
            raise not_ready(unready() or Unready("load")) from None
        finally:
            self._held.pop(opened, None)
            self._held_bytes -= _size(taken)
        if self._stopped is not None:
            raise self._stopped
        return _replayed(taken, receive)

    def stop(self, error: ApiError) -> None:
        """The server ends: whoever waits gets `error`."""
        self._stopped = error
        self._open()

    async def run(self) -> None:
        """Watches the agent's word and opens; ends only by cancellation."""
        try:
            while True:
                self._look()
                if not self.on:
                    self._open()
                self._probe_if_asked()
                await asyncio.sleep(POLL_S if self._held or self.on else IDLE_POLL_S)
        finally:
            if self._probing is not None:
                self._probing.cancel()

    async def predecessor_gone(self) -> None:
        """The engine knows one server at a time: until the one before has ended, it is the other's."""
        before = self._before
        await wait_while(lambda: before is not None and before.is_alive, POLL_S)

    async def _take_until(self, opened: asyncio.Future[None], receive: Receive, taken: list[Message]) -> None:
        """Reads on while it waits: only so it is seen when the client leaves."""
        while not opened.done():
            reading = asyncio.ensure_future(receive())
            either: set[asyncio.Future[Any]] = {reading, opened}
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not reading.done():
                    reading.cancel()
            if not reading.done():
                return
            message = reading.result()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            taken.append(message)
            self._held_bytes += _size([message])
            if self._held_bytes > MAX_HELD_BYTES:
                raise overloaded(f"the requests that wait hold {self._held_bytes} bytes, which is over the limit")

    def _open(self) -> None:
        for opened in self._held:
            if not opened.done():
                opened.set_result(None)

    def _look(self) -> None:
        """Reads the handover again when it has changed; one of another release says nothing to this server."""
        try:
            found = os.stat(self._run_dir / HANDOVER)
            seen = (found.st_mtime_ns, found.st_ino)
        except FileNotFoundError:
            self._seen = self._handover = None
            return
        if seen != self._seen:
            self._seen = seen
            read = read_handover(self._run_dir)
            self._handover = read if read is not None and read.release == self._release else None
        self._give_up_waiting()

    def _give_up_waiting(self) -> None:
        if self._engine.serving and self._ready_at is None:
            self._ready_at = time.monotonic()
        if self.on and self._ready_at is not None and time.monotonic() - self._ready_at > UNPROVED_S:
            logger.warning("no word of the agent for %.0f s since the engine is ready: requests are taken", UNPROVED_S)
            self._handover = None

    def _probe_if_asked(self) -> None:
        asked = self._handover.probe if self._handover is not None else None
        if asked is None or asked == self._asked or not self._engine.serving or self._model.tokenizer is None:
            return
        self._asked = asked
        self._probing = asyncio.create_task(self._answer(asked))

    async def _answer(self, probe: str) -> None:
        try:
            answer = Probed(probe=probe, tokens=tuple(await self._ask()))
        except ApiError as error:
            answer = Probed(probe=probe, error=error.error.message)
        with contextlib.suppress(FileNotFoundError):
            (self._run_dir / PROBED).unlink()  # what another user has left cannot be replaced, but what is ours can
        write_atomic(self._run_dir / PROBED, msgspec.json.encode(answer))

    async def _ask(self) -> list[int]:
        """The ids that greedily follow a fixed text. Raises ApiError."""
        tokenizer, ready = self._model.tokenizer, self._engine.ready
        if tokenizer is None or ready is None:
            raise not_ready(Unready("load"))
        prompt = tokenizer.encode_text(PROBE_TEXT, ready.max_model_len)[: ready.max_model_len - 1]
        tokens = min(PROBE_TOKENS, ready.max_model_len - len(prompt))
        sampling = Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        inbox = self._engine.submit([Submit(f"probe-{os.urandom(6).hex()}", prompt, sampling, _PROBE_SALT)])
        ids: list[int] = []
        try:
            while inbox.open_ids or not ids:
                for output in await inbox.take():
                    ids += output.tokens
                    if output.error is not None:
                        raise ApiError(500, output.error)
                    if output.finish is not None:
                        return ids
            return ids
        finally:
            self._engine.close(inbox)


async def wait_while(holds: Callable[[], bool], step_s: float) -> None:
    """For what sends no signal when it changes. `step_s`: seconds between two looks."""
    while holds():  # noqa: ASYNC110
        await asyncio.sleep(step_s)


def _size(messages: list[Message]) -> int:
    return sum(len(message.get("body", b"")) for message in messages)


def _replayed(taken: list[Message], receive: Receive) -> Receive:
    """First what was taken while the request waited, then what comes."""
    ahead = iter(taken)

    async def receiving() -> Message:
        message = next(ahead, None)
        return await receive() if message is None else message

    return receiving
