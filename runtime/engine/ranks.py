"""The driver's hold on the other ranks: starts them, waits until they have loaded, ends when one of them does."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from runtime.engine.channel import Channel, Kind
from runtime.engine.exits import BAD_CONFIG, crash

FOLDER_PREFIX = "ranks-"  # in the run folder; what an earlier engine left is removed at the next start
LOAD_STALL_S = 300.0  # a rank that loads nothing for so long hangs


class Ranks:
    """The ranks beside the driver. `rendezvous`: the file through which all find each other; `loading`: when each rank
    that is not ready yet was last heard of."""

    def __init__(self, channels: tuple[Channel, ...], rendezvous: Path) -> None:
        self.channels = channels
        self.rendezvous = rendezvous
        self.loading = dict.fromkeys(channels, time.monotonic())

    def listen(self, timeout_s: float) -> None:
        """Takes what ranks say of their loading, waiting up to `timeout_s` for the first. Raises TimeoutError when one
        moves no more. Call it now and then: a rank that is not heard stops when the socket's buffer is full."""
        now = time.monotonic()
        for channel in select.select([*self.loading], [], [], timeout_s)[0]:
            kind, _ = channel.receive()
            if kind is Kind.LOADED:
                del self.loading[channel]
            else:
                self.loading[channel] = now
        if now - min(self.loading.values(), default=now) > LOAD_STALL_S:
            raise TimeoutError(f"a rank has loaded nothing for {LOAD_STALL_S:.0f} s")


def start_ranks(size: int, release_dir: Path, run_dir: Path) -> Ranks:
    """Starts ranks 1 to size - 1, each bound to this process: none outlives it, and the end of one ends it.

    Call it from the main thread: the kernel binds a rank to the thread that started it.
    """
    for left in run_dir.glob(f"{FOLDER_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)
    rendezvous = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=run_dir)) / "rendezvous"
    channels = tuple(_start(rank, release_dir, rendezvous) for rank in range(1, size))
    return Ranks(channels, rendezvous)


def _start(rank: int, release_dir: Path, rendezvous: Path) -> Channel:
    mine, theirs = socket.socketpair()
    with theirs:
        fd = theirs.fileno()
        words = (os.getpid(), rank, fd, release_dir.resolve(), rendezvous.resolve())
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime.engine.rank", *map(str, words)], stdin=subprocess.DEVNULL, pass_fds=(fd,)
        )
    threading.Thread(target=_end_with, args=(process, rank), name=f"rank {rank}", daemon=True).start()
    return Channel(mine)


def _end_with(process: subprocess.Popen[bytes], rank: int) -> None:
    """A model that lacks a rank is of no use: the engine ends at once, whatever its main thread waits for."""
    status = process.wait()
    if status == BAD_CONFIG:
        os._exit(BAD_CONFIG)  # the rank has said why on stderr, which is this process's too
    how = f"was killed by signal {-status}" if status < 0 else f"has ended with status {status}"
    crash(f"rank {rank} {how}")
