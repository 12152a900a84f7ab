"""What a rank other than 0 does: load its share, join the others, run every step that the driver sends."""

from __future__ import annotations

import faulthandler
import logging
import sys
from array import array
from pathlib import Path

import torch

from runtime.engine.channel import Channel, Kind
from runtime.engine.exits import run_to_end
from runtime.engine.load import load_runner, read_release
from runtime.engine.memory import gpu_pool
from runtime.engine.runner import Runner
from runtime.engine.step import INT32
from runtime.model.group import Group, join


def run(release_dir: Path, rank: int, channel: Channel, rendezvous: Path) -> int:
    """Serves the driver until it ends, or ends the process with 70 or 78."""
    logging.basicConfig(level=logging.INFO, format=f"%(levelname)s rank {rank}: %(message)s", stream=sys.stderr)
    faulthandler.enable()
    run_to_end(lambda: _serve(release_dir, rank, channel, rendezvous))
    return 0


def _serve(release_dir: Path, rank: int, channel: Channel, rendezvous: Path) -> None:
    release = read_release(release_dir)
    group = Group(rank, release.options.tensor_parallel)
    runner = load_runner(release, group, lambda _share: channel.send(Kind.LOADING))
    channel.send(Kind.LOADED)
    channel.receive()  # JOIN, once the slowest has loaded
    join(group, runner.device, rendezvous)
    follow(runner, channel, release.options.gpu_memory_utilization)


@torch.inference_mode()
def follow(runner: Runner, channel: Channel, gpu_memory_utilization: float) -> None:
    """Does what the driver says until it ends."""
    while True:
        try:
            kind, body = channel.receive()
        except EOFError:
            return
        match kind:
            case Kind.STEP:
                runner.forward(body)
            case Kind.ALLOCATE:
                runner.allocate(array(INT32, bytes(body))[0])
            case Kind.RECORD:
                width, *sizes = array(INT32, bytes(body))
                runner.record(sizes, width)
            case Kind.MEASURE:
                blocks = gpu_pool(gpu_memory_utilization, runner.kv_bytes_per_block, useful_blocks=2**31 - 1).blocks
                channel.send(Kind.MEASURE, array(INT32, [blocks]))
            case _:
                raise ValueError(f"the driver never says {kind.name}")
