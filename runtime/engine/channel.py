"""Messages between the driver and one other rank: a kind and integers, over a socket pair of their own."""

from __future__ import annotations

import socket
import struct
from array import array
from enum import IntEnum

HEADER = struct.Struct("<II")  # kind, bytes that follow


class Kind(IntEnum):
    """What a message says."""

    LOADING = 0  # rank → driver: it still loads
    LOADED = 1  # rank → driver: ready to join the group
    JOIN = 2  # driver → rank: all have loaded
    ALLOCATE = 3  # driver → rank: make a KV pool of this many blocks
    MEASURE = 4  # driver → rank: how many KV blocks fit your GPU? The answer is of the same kind
    STEP = 5  # driver → rank: run this (runtime.engine.step)
    RECORD = 6  # driver → rank: record decode steps: blocks of the longest request, then the sizes


class Channel:
    """One end. Both ends block; the end of the other process ends this one's waiting with EOFError or OSError."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, kind: Kind, numbers: array[int] | None = None) -> None:
        """`numbers` are int32."""
        body = memoryview(numbers).cast("B") if numbers else b""
        self._socket.sendall(HEADER.pack(kind, len(body)) + body)

    def receive(self) -> tuple[Kind, bytearray]:
        """Raises EOFError when the other process has ended."""
        kind, size = HEADER.unpack(self._read(HEADER.size))
        return Kind(kind), self._read(size)

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise EOFError("the other process has ended")
            view = view[count:]
        return data

    def close(self) -> None:
        self._socket.close()
