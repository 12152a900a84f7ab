"""An engine of several ranks: one answers for all, and the end of one is the end of all."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from runtime.agent.logs import LogFile
from runtime.agent.process import UnitProcess
from runtime.agent.units import RestartPolicy, UnitSpec
from runtime.ipc import Submit
from tests.lab import checkpoints
from tests.runtime.engine.engine_process import DEADLINE_S, ROOT, Peer, engine_argv, greedy, start, write_release

STOPPED_S = 5 + 3  # the engine's least deadline for a step, and the watchdog's period


class Engine:
    """Two ranks, ready to serve."""

    def __init__(self, model: Path, folder: Path, device: str = "cpu") -> None:
        self.run = folder / "run"
        self.process = start(write_release(folder / "r1", model, tensor_parallel=2, device=device), self.run)
        self.peer = Peer(self.run / "engine.sock")
        self.peer.until_ready()
        (self.rank,) = children(self.process.pid)

    def ends(self, timeout_s: float) -> tuple[int, str]:
        """Exit code and last words, once it has ended by itself."""
        _, errors = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, errors


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """A checkpoint, and what transformers says after 1, 2, 3."""
    folder = tmp_path_factory.mktemp("model")
    reference = checkpoints.save("qwen3-moe", folder, shard="100KB")
    return folder, checkpoints.greedy(reference, [1, 2, 3], 12)


@pytest.fixture
def engine(model: tuple[Path, list[int]], tmp_path: Path) -> Iterator[Engine]:
    started = Engine(model[0], tmp_path)
    yield started
    if started.process.poll() is None:
        started.process.kill()
        started.process.communicate()


def test_it_answers_as_one_rank_would_and_ends_clean(engine: Engine, model: tuple[Path, list[int]]) -> None:
    engine.peer.send(Submit("a", [1, 2, 3], greedy(12)))
    assert engine.peer.finish("a")[0] == model[1]
    engine.process.terminate()
    assert engine.ends(DEADLINE_S)[0] == 0
    until_gone(engine.rank)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_two_gpus_it_answers_as_one_rank_would(model: tuple[Path, list[int]], tmp_path: Path) -> None:
    engine = Engine(model[0], tmp_path, device="cuda")
    engine.peer.send(Submit("a", [1, 2, 3], greedy(12)))
    assert engine.peer.finish("a")[0] == model[1]
    engine.process.terminate()
    assert engine.ends(DEADLINE_S)[0] == 0


@pytest.mark.slow
def test_its_ranks_talk_on_the_loopback_interface_only(engine: Engine) -> None:
    sockets = [
        socket for pid in (engine.process.pid, engine.rank) for socket in psutil.Process(pid).net_connections("inet")
    ]
    assert sockets
    assert {socket.laddr.ip for socket in sockets} == {"127.0.0.1"}


def test_a_killed_rank_ends_it_at_once_with_70(engine: Engine) -> None:
    os.kill(engine.rank, signal.SIGKILL)
    status, errors = engine.ends(2)
    assert status == 70
    assert "error: rank 1 was killed by signal 9" in errors


@pytest.mark.slow
def test_a_rank_that_hangs_in_a_step_ends_it_with_70_within_the_deadline(engine: Engine) -> None:
    os.kill(engine.rank, signal.SIGSTOP)
    engine.peer.send(Submit("a", [1, 2, 3], greedy(12)))
    status, errors = engine.ends(STOPPED_S)
    assert status == 70
    assert "the engine hangs" in errors
    until_gone(engine.rank)


@pytest.mark.slow
def test_a_killed_driver_takes_its_ranks_along_and_the_next_one_starts_afresh(
    engine: Engine, model: tuple[Path, list[int]], tmp_path: Path
) -> None:
    engine.process.kill()
    engine.process.communicate()
    until_gone(engine.rank)
    again = Engine(model[0], tmp_path)
    again.peer.send(Submit("a", [1, 2, 3], greedy(12)))
    assert again.peer.finish("a")[0] == model[1]
    assert len(list(engine.run.glob("ranks-*"))) == 1
    again.process.kill()
    again.process.communicate()


@pytest.mark.slow
def test_the_supervisor_brings_it_back_when_it_has_lost_a_rank(
    model: tuple[Path, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    run = tmp_path / "run"
    run.mkdir()
    argv = engine_argv(write_release(tmp_path / "r1", model[0], tensor_parallel=2), run)
    unit = UnitProcess(
        UnitSpec("engine", tuple(argv)),
        LogFile(tmp_path / "engine.log"),
        current=tmp_path / "r1",
        listen_fd=None,
        policy=RestartPolicy(first_s=0.1),
    )
    unit.start()
    try:
        Peer(run / "engine.sock").until_ready()
        assert unit.pid is not None
        first = unit.pid
        (rank,) = children(first)
        os.kill(rank, signal.SIGKILL)
        deadline = time.monotonic() + DEADLINE_S
        while unit.pid in (None, first):
            assert time.monotonic() < deadline, f"not started again: {unit.snapshot()}"
            unit.reap(time.monotonic())
            unit.tick(time.monotonic())
            time.sleep(0.02)
        assert unit.exit_code == 70
        peer = Peer(run / "engine.sock")
        peer.until_ready()
        peer.send(Submit("a", [1, 2, 3], greedy(12)))
        assert peer.finish("a")[0] == model[1]
    finally:
        unit.kill()
        while not unit.reap(time.monotonic()):
            time.sleep(0.02)
