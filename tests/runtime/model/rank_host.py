"""A rank for tests: started once, it holds its share of one small model after another.

    python -m tests.runtime.model.rank_host RANK SIZE RENDEZVOUS FD

Each message on FD is a checkpoint folder, with one end of the channel over which that model's steps come.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from runtime.engine.channel import Channel
from runtime.engine.follower import follow
from runtime.engine.runner import Runner
from runtime.model.checkpoint import Checkpoint, read_model_spec
from runtime.model.decoder import load_decoder
from runtime.model.group import ALONE, Group, join
from runtime.ops.ops import choose

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
BLOCK = 16
MAX_MODEL_LEN = 512


def load(folder: Path, group: Group = ALONE, others: tuple[Channel, ...] = ()) -> Runner:
    """The model in `folder`, or this rank's share of it, with the engine's own CPU ops."""
    model = load_decoder(
        read_model_spec(folder),
        Checkpoint(folder),
        choose(CPU, torch.float32),
        device=CPU,
        dtype=torch.float32,
        max_model_len=MAX_MODEL_LEN,
        group=group,
    )
    return Runner(model, device=CPU, dtype=torch.float32, block_size=BLOCK, group=group, others=others)


class Ranks:
    """This process as rank 0, and the hosts of the other ranks."""

    def __init__(self, size: int, hosts: list[socket.socket]) -> None:
        self.group = Group(0, size)
        self._hosts = hosts

    @contextmanager
    def serve(self, folder: Path) -> Iterator[Runner]:
        """The model in `folder`, held by all ranks."""
        channels = []
        for host in self._hosts:
            mine, theirs = socket.socketpair()
            with theirs:
                socket.send_fds(host, [os.fsencode(folder)], [theirs.fileno()])
            channels.append(Channel(mine))
        try:
            yield load(folder, self.group, tuple(channels))
        finally:
            for channel in channels:
                channel.close()


@contextmanager
def ranks(size: int) -> Iterator[Ranks]:
    """Starts `size` - 1 hosts and joins them; they end with the block, or with this process."""
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = Path(folder) / "rendezvous"
        started = [_start(rank, size, rendezvous) for rank in range(1, size)]
        join(Group(0, size), CPU, rendezvous)
        yield Ranks(size, [host for _, host in started])
        for process, host in started:
            host.close()
            process.wait(timeout=60)
        dist.destroy_process_group()
    assert [process.returncode for process, _ in started] == [0] * (size - 1)


def _start(rank: int, size: int, rendezvous: Path) -> tuple[subprocess.Popen[bytes], socket.socket]:
    mine, theirs = socket.socketpair()
    with theirs:
        words = [str(word) for word in (rank, size, rendezvous, theirs.fileno())]
        argv = [sys.executable, "-m", "tests.runtime.model.rank_host", *words]
        return subprocess.Popen(argv, cwd=ROOT, pass_fds=(theirs.fileno(),)), mine


def main(rank: int, size: int, rendezvous: Path, control: socket.socket) -> None:
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    group = Group(rank, size)
    join(group, CPU, rendezvous)
    while True:
        folder, fds, _, _ = socket.recv_fds(control, 4096, 1)
        if not folder:
            return
        channel = Channel(socket.socket(fileno=fds[0]))
        follow(load(Path(os.fsdecode(folder)), group), channel, gpu_memory_utilization=1.0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), socket.socket(fileno=int(sys.argv[4])))
