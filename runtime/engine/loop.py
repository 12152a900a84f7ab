"""The engine's loop: drain commands ► plan ► launch ► read ► apply ► send. One thread, no locks.

With `overlap`, a step is launched before the one ahead of it has been read: the device does not wait for the host.

    device    | step 1        | step 2        | step 3        |
    host      launch 2 │ read 1, apply, send │ launch 3 │ read 2, apply, send │ …

The scheduler says what a step may not run ahead of (runtime.engine.scheduler).

What fails in a step ends the process with status 70 (runtime.engine.main), and the supervisor starts it again; the one
exception is the first time that a prompt's part of a step finds no GPU memory. A watchdog thread ends a loop that no
longer moves.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.engine.exits import CRASHED
from runtime.engine.gpu import GpuWatch
from runtime.engine.grammar import GrammarError, Grammars
from runtime.engine.link import ServerGone, ServerLink
from runtime.engine.runner import Runner
from runtime.engine.scheduler import Row, Scheduler
from runtime.engine.sequence import Sequence
from runtime.ipc import Abort, FinishReason, Heartbeat, Output, Outputs, Submit, ToEngine, TokenLogprobs
from runtime.ops.sampling import INVALID, Drawn, Logprobs, Sample

IDLE_POLL_S = 1.0
LOOKS = 8  # of the watchdog, in the longest that a step may take
MAX_REASON = 300  # characters of a grammar's failure
_NO_MEMORY = "the GPU has no memory left for a prompt of this length beside the others; send it again, or a shorter one"

log = logging.getLogger("engine")


class Watchdog:
    """Ends the process when a step takes over `limit_s`.

    It counts its own looks, not the clock: a process that was stopped, or whose machine stood still, has not hung.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._turn = 0  # odd while a step is under way
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step, which may fail."""
        self._turn += 1
        try:
            yield
        finally:
            self._turn += 1

    def _watch(self) -> None:
        seen = looks = 0
        while looks < LOOKS:
            time.sleep(self.limit_s / LOOKS)
            looks = looks + 1 if self._turn == seen and seen % 2 else 0
            seen = self._turn
        print(f"error: a step took over {self.limit_s:.0f} s: the engine hangs", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        os._exit(CRASHED)


@dataclass(frozen=True, slots=True)
class Flight:
    """A step that has been launched. `broken`: why a grammar failed, by request id."""

    rows: list[Row]
    drawn: Drawn
    broken: dict[str, str]


class EngineLoop:
    """Requests in, tokens out, until the process ends."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        link: ServerLink,
        watchdog: Watchdog,
        grammars: Grammars,
        gpus: GpuWatch,
        *,
        overlap: bool | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.link = link
        self.watchdog = watchdog
        self.grammars = grammars
        self.gpus = gpus
        # Of no use where the device's operations block, as a CPU's do.
        self.overlap = runner.device.type == "cuda" if overlap is None else overlap
        self._flight: Flight | None = None  # launched and not read
        self._was_out_of_memory = False
        self._eos = frozenset(runner.model.spec.eos_token_ids)

    def run(self) -> None:
        while True:
            self._drain()
            if (gpus := self.gpus.take()) is not None:
                self.link.send(gpus)
            if self.scheduler.has_work:
                self.link.send(Outputs(self.step(), self.scheduler.stats()))
            else:
                self.link.send(Heartbeat(self.scheduler.stats(), self.watchdog.limit_s))

    def step(self) -> list[Output]:
        """Plans and launches a step, then reads the one that is due: the same, or with `overlap` the one before.

        Returns what that yields.
        """
        with self.watchdog.step():
            rows = self.scheduler.plan()
            launched = self._launch(rows) if rows else None
            outputs = [self._relieve(rows)] if rows and launched is None else []
            due, self._flight = (self._flight, launched) if self.overlap else (launched, None)
            if due is not None:
                outputs += self._land(due)
        return outputs

    def _launch(self, rows: list[Row]) -> Flight | None:
        """Starts the rows on the device. None = no memory for a prompt's part, for the first time."""
        self._note_starts(rows)
        allowed, broken = self._masks(rows)
        try:
            return Flight(rows, self.runner.launch(rows, allowed), broken)
        except torch.OutOfMemoryError:
            self.scheduler.cancel(rows)
            # Decodes fit by construction, and other ranks wait in the middle of this step: nothing to go on with.
            if self._was_out_of_memory or _largest(rows).count == 1 or not self.runner.alone:
                raise
            return None

    def _land(self, flight: Flight) -> list[Output]:
        """Waits for the step and takes its tokens; those of requests that have ended meanwhile are dropped."""
        samples = flight.drawn.read()
        self.scheduler.apply(flight.rows, [sample.token for sample in samples])
        sampled = (row.seq for row in flight.rows if row.samples)
        return [
            self._output(seq, found, flight.broken.get(seq.id))
            for seq, found in zip(sampled, samples, strict=True)
            if not seq.ended
        ]

    def _relieve(self, rows: list[Row]) -> Output:
        """Ends the request with the largest part in a step that found no memory, and plans smaller steps from now on.

        The others' parts are computed again by the next step.
        """
        self._was_out_of_memory = True
        seq = _largest(rows).seq
        budget = max(1, self.scheduler.max_batched_tokens // 2)
        log.error("out of memory: request %s fails, a step takes at most %d tokens from now on", seq.id, budget)
        self.scheduler.max_batched_tokens = budget
        self.runner.release_memory()
        return self._give_up(seq, _NO_MEMORY)

    def _note_starts(self, rows: list[Row]) -> None:
        now = time.monotonic()
        for row in rows:
            if row.seq.started_at is None:
                row.seq.started_at = now

    def _masks(self, rows: list[Row]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """(allowed tokens, why a grammar failed) by request id, for the rows that sample under a grammar."""
        allowed: dict[str, Tensor] = {}
        broken: dict[str, str] = {}
        for row in rows:
            if row.samples and row.seq.matcher is not None:
                try:
                    allowed[row.seq.id] = row.seq.matcher.allowed()
                except GrammarError as error:
                    broken[row.seq.id] = str(error)
        return allowed, broken

    def _drain(self) -> None:
        """Takes every command that has arrived; waits for one only when there is nothing to do."""
        wait = 0.0 if self.scheduler.has_work else IDLE_POLL_S
        while True:
            try:
                frames = self.link.poll(wait)
            except ServerGone as gone:
                log.info("%s: %d requests aborted", gone, len(self.scheduler.running) + len(self.scheduler.waiting))
                self.scheduler.abort_all()
                continue
            if not frames:
                return
            for frame in frames:
                self._handle(frame)
            wait = 0.0

    def _handle(self, frame: ToEngine) -> None:
        match frame:
            case Submit():
                try:
                    grammar = frame.sampling.grammar
                    matcher = None if grammar is None else self.grammars.open(grammar)
                    seq = Sequence(frame.id, frame.prompt, frame.sampling, frame.salt, matcher)
                    seq.arrived_at = time.monotonic()
                    self.scheduler.add(seq)
                except ValueError as error:
                    self._refuse(frame.id, str(error))
            case Abort():
                self.scheduler.abort(frame.id)

    def _refuse(self, request_id: str, reason: str) -> None:
        output = Output(request_id, [], finish="error", error=reason)
        self.link.send(Outputs([output], self.scheduler.stats()))

    def _output(self, seq: Sequence, sample: Sample, broken: str | None) -> Output:
        if sample.token == INVALID:
            log.error("request %s: logits are not finite", seq.id)
            return self._give_up(seq, "the model's output is not a number: this request cannot go on", broken=True)
        if seq.matcher is not None:
            try:
                seq.matcher.accept(sample.token)
            except GrammarError as error:
                broken = broken or str(error)
        if broken is not None:
            return self._give_up(seq, f"the grammar cannot be followed any further: {broken[:MAX_REASON]}")
        finish: FinishReason | None = seq.finish_reason(self._eos, self.scheduler.max_model_len)
        if finish is not None:
            self.scheduler.finish(seq)
        first = seq.num_output == 1
        return Output(
            seq.id,
            [sample.token],
            finish=finish,
            stopped_by_token=finish == "stop",
            cached_tokens=seq.cached_tokens if first else 0,
            logprobs=None if sample.logprobs is None else [_logprobs(sample.logprobs)],
            queued_s=seq.queued_s if first else 0.0,
        )

    def _give_up(self, seq: Sequence, error: str, *, broken: bool = False) -> Output:
        """Ends one request; the others go on. `broken`: its part of the KV cache is not to be used again."""
        self.scheduler.finish(seq, broken=broken)
        return Output(seq.id, [], finish="error", error=error)


def _largest(rows: list[Row]) -> Row:
    return max(rows, key=lambda row: row.count)


def _logprobs(found: Logprobs) -> TokenLogprobs:
    return TokenLogprobs(found.chosen, found.rank, found.top)
