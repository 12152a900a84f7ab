"""The engine process as the server sees it: frames over its socket, and its exit codes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.ipc import Abort, Heartbeat, Hello, Submit
from tests.runtime.engine.engine_process import DEADLINE_S, Peer, greedy, start, write_release


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.lab import checkpoints

    folder = tmp_path_factory.mktemp("model")
    checkpoints.save("llama", folder)
    return folder


@pytest.fixture(scope="module")
def engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    run = tmp_path_factory.mktemp("run")
    process = start(write_release(tmp_path_factory.mktemp("release") / "r1", model), run)
    yield run / "engine.sock"
    process.terminate()
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0


def test_the_socket_is_for_its_owner_only(engine: Path) -> None:
    Peer(engine).until_ready()
    assert engine.stat().st_mode & 0o777 == 0o600


def test_a_new_server_is_greeted_and_told_that_the_engine_is_ready(engine: Path) -> None:
    peer = Peer(engine)
    assert isinstance(peer.next(), Hello)
    assert peer.until_ready().max_model_len == 256


def test_a_request_streams_its_tokens_one_step_at_a_time(engine: Path) -> None:
    peer = Peer(engine)
    peer.until_ready()
    peer.send(Submit("a", [1, 2, 3], greedy(5)))
    outputs = []
    for output in peer.outputs():
        outputs.append(output)
        if output.finish:
            break
    assert [len(o.tokens) for o in outputs] == [1] * 5
    assert outputs[-1].finish == "length"


def test_a_stop_token_ends_the_request_and_is_marked(engine: Path) -> None:
    peer = Peer(engine)
    peer.until_ready()
    peer.send(Submit("a", [1, 2, 3], greedy(8)))
    tokens, _ = peer.finish("a")
    stop = tokens[3]
    peer.send(Submit("b", [1, 2, 3], greedy(8, stop_token_ids=(stop,))))
    stopped, last = peer.finish("b")
    assert stopped == tokens[: tokens.index(stop) + 1]
    assert last.finish == "stop"
    assert last.stopped_by_token


def test_min_tokens_holds_a_stop_token_back(engine: Path) -> None:
    peer = Peer(engine)
    peer.until_ready()
    peer.send(Submit("a", [1, 2, 3], greedy(6)))
    tokens, _ = peer.finish("a")
    peer.send(Submit("b", [1, 2, 3], greedy(6, stop_token_ids=(tokens[0],), min_tokens=4)))
    later, _ = peer.finish("b")
    assert len(later) >= 4
    assert tokens[0] not in later[:4]


def test_the_same_seed_gives_the_same_tokens_beside_other_requests(engine: Path) -> None:
    peer = Peer(engine)
    peer.until_ready()
    sampling = greedy(12, temperature=1.0, seed=42)
    peer.send(Submit("alone", [9, 8, 7], sampling))
    alone, _ = peer.finish("alone")
    peer.send(
        Submit("x", [5] * 40, greedy(30, temperature=0.8, top_k=5, seed=1)),
        Submit("crowd", [9, 8, 7], sampling),
        Submit("y", [6] * 9, greedy(30)),
    )
    crowd, _ = peer.finish("crowd")
    assert crowd == alone


def test_a_request_that_cannot_run_is_refused_and_the_engine_goes_on(engine: Path) -> None:
    peer = Peer(engine)
    peer.until_ready()
    peer.send(Submit("long", [1] * 256, greedy(4)), Submit("good", [1], greedy(2)))
    tokens, last = peer.finish("long")
    assert (tokens, last.finish) == ([], "error")
    assert "limit is 256" in (last.error or "")
    assert len(peer.finish("good")[0]) == 2


def test_an_abort_frees_the_requests_blocks(engine: Path) -> None:
    peer = Peer(engine)
    peer.until_ready()
    peer.send(Submit("a", [1, 2, 3], greedy(250)))
    next(peer.outputs())
    peer.send(Abort("a"))
    while not isinstance(frame := peer.next(), Heartbeat):
        pass
    assert (frame.stats.running, frame.stats.kv_usage) == (0, 0.0)


def test_the_requests_of_a_server_that_has_gone_are_dropped(engine: Path) -> None:
    first = Peer(engine)
    first.until_ready()
    first.send(Submit("a", [1, 2, 3], greedy(250)))
    next(first.outputs())
    second = Peer(engine)
    second.until_ready()
    frame = second.next()
    while not isinstance(frame, Heartbeat) or frame.stats.running:
        frame = second.next()
    second.send(Submit("a", [1], greedy(1)))
    assert len(second.finish("a")[0]) == 1


def test_a_server_that_sends_nonsense_is_dropped_and_the_next_one_served(engine: Path) -> None:
    peer = Peer(engine)
    peer.until_ready()
    peer.socket.sendall(b"\x05\x00\x00\x00hello")
    with pytest.raises(ConnectionError):
        peer.finish("anything")
    assert Peer(engine).until_ready().vocab_size == 256


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_model_len": 100_000}, "over the model's 512 positions"),
        ({"tensor_parallel": 3}, "tensor_parallel 3 does not fit this model: 8 attention heads do not divide by 3"),
        ({"quantization": "fp8"}, "quantization 'fp8' is not supported on cpu"),
        ({"dtype": "float8"}, "dtype 'float8' is not one of"),
        ({"device": "tpu"}, "device 'tpu' is not one of cpu, cuda"),
        ({"kv_cache_bytes": 100_000}, "fewer than max_model_len"),
        ({"kv_cache_bytes": 100_000, "tensor_parallel": 2}, "fewer than max_model_len"),
        ({"kv_cache_bytes": 2**50, "max_num_seqs": 10**9}, "does not fit in the"),
    ],
)
def test_a_configuration_that_cannot_work_ends_with_78_and_a_hint(
    model: Path, tmp_path: Path, options: dict[str, object], reason: str
) -> None:
    process = start(write_release(tmp_path / "r1", model, **options), tmp_path / "run")
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 78, errors
    last = errors.splitlines()[-1]
    assert last.startswith("error: ")
    assert reason in last
    assert " | hint: " in last


def test_a_crash_ends_with_70_and_its_traceback(model: Path, tmp_path: Path) -> None:
    release = write_release(tmp_path / "r1", model)
    (release / "deployment.json").write_text("{")
    process = start(release, tmp_path / "run")
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 70
    assert "DecodeError" in errors


def test_sigterm_while_busy_ends_at_once(model: Path, tmp_path: Path) -> None:
    process = start(write_release(tmp_path / "r1", model), tmp_path / "run")
    peer = Peer(tmp_path / "run" / "engine.sock")
    peer.until_ready()
    peer.send(Submit("a", [1], greedy(250)))
    next(peer.outputs())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=5)
    assert process.returncode == 0
