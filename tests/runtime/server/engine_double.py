"""A scripted peer on the engine's socket: speaks the real frames, generates what the test says."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from runtime.ipc import (
    PROTOCOL,
    SOCKET_NAME,
    Abort,
    Frame,
    FrameBuffer,
    Heartbeat,
    Hello,
    Output,
    Outputs,
    Progress,
    Ready,
    Stats,
    Submit,
    ToEngine,
    TokenLogprobs,
    decode_to_engine,
    pack,
)

DEADLINE_S = 30.0


class ScriptedEngine:
    """One engine life after another on the same socket path.

    `reply`: the tokens of every request. `pause_at`: how many of them go out before the engine waits for ever.
    """

    def __init__(self, run_dir: Path, release: str, eos: int, vocab_size: int) -> None:
        self.path = run_dir / SOCKET_NAME
        self.release = release
        self.eos = eos
        self.max_model_len = 256
        self.vocab_size = vocab_size
        self.hang_after_s = 30.0
        self.seen: list[ToEngine] = []
        self.stats = Stats(1, 2, 0.25, 3, 100, 40, 7)
        self.reset()
        self._changed = threading.Condition()
        self._listener: socket.socket | None = None
        self._connection: socket.socket | None = None
        self._send_lock = threading.Lock()
        self._ready = False

    def reset(self) -> None:
        """Back to the script that every test starts with."""
        self.reply: list[int] = []
        self.pause_at: int | None = None
        self.tokens_per_step = 1
        self.cached_tokens = 0
        self.error: str | None = None
        self.seen.clear()

    @property
    def submits(self) -> list[Submit]:
        return [frame for frame in list(self.seen) if isinstance(frame, Submit)]

    @property
    def aborted(self) -> set[str]:
        return {frame.id for frame in list(self.seen) if isinstance(frame, Abort)}

    def start(self, *, ready: bool = True) -> None:
        """Listens, greets every server that connects."""
        self._ready = ready
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(1)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def kill(self) -> None:
        """What a kill -9 looks like from outside: the sockets close at once."""
        for end in (self._listener, self._connection):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        self._listener = self._connection = None
        self.path.unlink(missing_ok=True)

    def send(self, frame: Frame) -> None:
        with self._send_lock, contextlib.suppress(OSError):
            if self._connection is not None:
                self._connection.sendall(pack(frame))

    def progress(self, percent: float, eta_s: float) -> None:
        self.send(Progress(percent, eta_s, "reading weights"))

    def become_ready(self) -> None:
        self._ready = True
        self.send(Ready(self.max_model_len, self.vocab_size, 16, 64, 4, (self.eos,)))

    def heartbeat(self) -> None:
        self.send(Heartbeat(self.stats, self.hang_after_s))

    def finish(self, request_id: str, tokens: list[int]) -> None:
        """The last tokens of a request that waits."""
        self.send(Outputs([Output(request_id, [*tokens, self.eos], "stop", True)], self.stats))

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Until `condition` holds; it is looked at whenever a frame or a connection comes."""
        with self._changed:
            assert self._changed.wait_for(condition, DEADLINE_S), f"not within {DEADLINE_S} s: {what}"

    def wait_connected(self) -> None:
        self.wait_for(lambda: self._connection is not None, "the server connects")

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.sendall(pack(Hello(PROTOCOL, 1, self.release)))
            self._connection = connection
            if self._ready:
                self.become_ready()
                self.heartbeat()
            with self._changed:
                self._changed.notify_all()
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        buffer = FrameBuffer()
        while True:
            try:
                data = connection.recv(65536)
            except OSError:
                return
            if not data:
                return
            for frame in map(decode_to_engine, buffer.feed(data)):
                with self._changed:
                    self.seen.append(frame)
                    self._changed.notify_all()
                if isinstance(frame, Submit):
                    self._generate(frame)

    def _generate(self, submit: Submit) -> None:
        if self.error is not None:
            self.send(Outputs([Output(submit.id, [], "error", error=self.error)], self.stats))
            return
        limit = submit.sampling.max_tokens
        tokens = [*self.reply, self.eos][:limit]
        stop_ids = {self.eos, *submit.sampling.stop_token_ids}
        for start in range(0, len(tokens), self.tokens_per_step):
            if self.pause_at is not None and start >= self.pause_at:
                return
            step = tokens[start : start + self.tokens_per_step]
            stopped = next((at for at, token in enumerate(step) if token in stop_ids), None)
            if stopped is not None:
                step = step[: stopped + 1]
            full = start + len(step) >= limit
            finish = "stop" if stopped is not None else "length" if full else None
            cached = self.cached_tokens if start == 0 else 0
            count = submit.sampling.logprobs
            logprobs = None if count is None else [scripted_logprobs(token, count) for token in step]
            output = Output(submit.id, step, finish, stopped is not None, cached, None, logprobs)  # type: ignore[arg-type]
            self.send(Outputs([output], self.stats))
            if finish is not None:
                return


def scripted_logprobs(token: int, count: int) -> TokenLogprobs:
    """The chosen token at -0.5 and its successors in the vocabulary below it."""
    return TokenLogprobs(-0.5, 1, tuple((token + at, -0.5 - at) for at in range(count)))


def poll(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Until `condition` holds, for things that send no signal."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        threading.Event().wait(0.01)
