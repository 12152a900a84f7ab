"""The engine's end of the unix socket: one server at a time, non-blocking reads, bounded writes."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
from pathlib import Path

from runtime.ipc import (
    PROTOCOL,
    SOCKET_NAME,
    Frame,
    FrameBuffer,
    FrameError,
    Hello,
    ToEngine,
    decode_to_engine,
    pack,
)

SEND_TIMEOUT_S = 5.0  # a server that reads nothing for so long is gone
_READ_SIZE = 1 << 18


class ServerGone(Exception):
    """The server closed the connection, sent nonsense, or was replaced: its requests are void."""


class ServerLink:
    """Listens on `<run>/engine.sock`. A new server replaces the old one.

    Mode 0600; on a VM, where server and engine are two users, their run folder is one of a group (setgid): 0660.
    """

    def __init__(self, run_dir: Path, release: str) -> None:
        path = run_dir / SOCKET_NAME
        path.unlink(missing_ok=True)
        self._hello = Hello(PROTOCOL, os.getpid(), release)
        self._greeting: list[Frame] = [self._hello]
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        shared = run_dir.stat().st_mode & stat.S_ISGID
        mask = os.umask(0o117 if shared else 0o177)
        try:
            self._listener.bind(str(path))
        finally:
            os.umask(mask)
        self._listener.listen(4)
        self._listener.setblocking(False)
        self._peer: socket.socket | None = None
        self._buffer = FrameBuffer()

    def greet_with(self, *frames: Frame) -> None:
        """Frames that every new server gets after Hello; the one connected now gets them at once."""
        self._greeting = [self._hello, *frames]
        for frame in frames:
            self.send(frame)

    def poll(self, timeout_s: float) -> list[ToEngine]:
        """Frames that have arrived, waiting up to `timeout_s` for the first.

        Raises ServerGone when the requests of the server so far are void; call again for the next one's frames.
        """
        sockets = [self._listener, *([self._peer] if self._peer else [])]
        readable, _, _ = select.select(sockets, [], [], timeout_s)
        if self._listener in readable:
            self._accept()
            raise ServerGone("a new server has connected")
        return self._receive() if readable else []

    def send(self, frame: Frame) -> None:
        """Sends to the server if there is one. One that has gone is noticed by the next poll."""
        if self._peer is None:
            return
        with contextlib.suppress(OSError):
            self._peer.sendall(pack(frame))

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            peer, _ = self._listener.accept()
            self._drop()
            peer.settimeout(SEND_TIMEOUT_S)
            self._peer = peer
            for frame in self._greeting:
                self.send(frame)

    def _receive(self) -> list[ToEngine]:
        assert self._peer is not None
        try:
            data = self._peer.recv(_READ_SIZE)
            if data:
                return [decode_to_engine(body) for body in self._buffer.feed(data)]
            reason = "the server has closed the connection"
        except (OSError, FrameError) as error:
            reason = str(error)
        self._drop()
        raise ServerGone(reason)

    def _drop(self) -> None:
        if self._peer is not None:
            self._peer.close()
        self._peer = None
        self._buffer = FrameBuffer()
