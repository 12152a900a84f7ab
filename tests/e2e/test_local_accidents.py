"""What goes wrong on the way: each a clear error and a next command, and `down` always works."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision import process
from tests.e2e.journey import Home, free_port, kill, wait_for

pytestmark = [pytest.mark.demo, pytest.mark.timeout(900)]
NAME = "chat"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    home.run("down", "--all")


def supervisor_pid(home: Home) -> int | None:
    try:
        record = json.loads((home.state(NAME) / "machine" / "supervisor.json").read_bytes())
    except FileNotFoundError:
        return None
    return int(record["pid"])


def begin_up(home: Home, port: int) -> tuple[int, int]:
    """Starts `up` and returns once its supervisor runs: (pid of up, pid of the supervisor)."""
    up = home.begin("up", NAME, "--model", "demo", "--port", str(port), "--yes")
    supervisor = wait_for("a supervisor", lambda: supervisor_pid(home))
    return up.pid, supervisor


def test_a_taken_port_names_its_owner_and_a_free_one(home: Home) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        error = home.json("up", NAME, "--model", "demo", "--port", str(port), "--yes", code=8)["error"]
    assert f"pid {os.getpid()}" in error["why"]
    assert "--port" in error["next"]
    assert not home.state(NAME).exists()


def test_without_a_terminal_up_asks_for_yes_and_leaves_nothing(home: Home) -> None:
    done = home.run("up", NAME, "--model", "demo", "--port", str(free_port()), code=2)
    assert f"deployctl up --name {NAME} --yes" in done.stderr
    assert not home.state(NAME).exists()


def test_a_second_up_beside_a_running_one_says_who_works_and_down_ends_both(home: Home) -> None:
    port = free_port()
    up, supervisor = begin_up(home, port)
    error = home.json("up", NAME, "--model", "demo", "--yes", code=7)["error"]
    assert f"pid {up}" in error["why"]
    assert f"deployctl up {NAME}" in error["why"]
    removal = home.json("down", NAME)[0]
    assert removal["clean"]
    assert process.start_ticks(supervisor) is None
    assert process.start_ticks(up) is None
    assert not home.state(NAME).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_an_up_that_was_cut_off_is_taken_up_again(home: Home, number: signal.Signals) -> None:
    port = free_port()
    up, supervisor = begin_up(home, port)
    os.kill(up, number)
    wait_for("the end of up", lambda: True if process.start_ticks(up) is None else None)
    done = home.run("up", NAME, "--model", "demo", "--port", str(port), "--yes")
    assert f"http://127.0.0.1:{port}/v1" in done.stdout
    assert supervisor_pid(home) == supervisor


def test_ctrl_c_says_what_goes_on_and_how_to_take_it_up(home: Home) -> None:
    up = home.begin("up", NAME, "--model", "demo", "--port", str(free_port()), "--yes")
    wait_for("a supervisor", lambda: supervisor_pid(home))
    os.kill(up.pid, signal.SIGINT)
    _, said = up.communicate(timeout=30)
    assert up.returncode == 130
    assert f"deployctl up --name {NAME}" in said
    assert f"deployctl down {NAME}" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_killed_supervisor_takes_its_processes_along_and_up_works_again(home: Home) -> None:
    port = free_port()
    home.run("up", NAME, "--model", "demo", "--port", str(port), "--yes")
    pids = [record["pid"] for record in home.json("status", NAME)["processes"]]
    key = home.json("endpoint", NAME)["api_key"]
    kill(pids[0])
    wait_for("all to end", lambda: True if not any(map(process.start_ticks, pids)) else None, 20)
    assert home.json("status", NAME, code=10)["life"] == "stopped"
    home.run("up", "--yes")
    assert home.json("endpoint", NAME)["api_key"] == key


def test_a_stale_pid_of_another_process_is_never_touched(home: Home) -> None:
    machine = home.state(NAME) / "machine"
    machine.mkdir(parents=True)
    record = {"pid": os.getpid(), "started_at": 1, "host": "127.0.0.1", "port": free_port()}
    (machine / "supervisor.json").write_text(json.dumps(record))
    home.run("status", NAME, code=10)
    assert home.json("down", NAME)[0]["ended"] == []
    assert not home.state(NAME).exists()


@pytest.mark.slow
def test_damaged_state_is_named_and_down_still_ends_everything(home: Home) -> None:
    _, supervisor = begin_up(home, free_port())
    root = home.state(NAME)
    (root / "machine" / "supervisor.json").write_text("{half")
    (root / "mailbox" / "release" / "current.json").write_bytes(b"\xff\xfe")
    error = home.json("status", NAME, code=14)["error"]
    assert error["next"] == f"deployctl down {NAME}"
    assert home.json("down", NAME)[0]["clean"]
    assert process.start_ticks(supervisor) is None
    assert not root.exists()


def test_a_model_folder_without_a_model_is_refused_before_anything_starts(home: Home) -> None:
    error = home.json("up", NAME, "--model", str(home.folder / "nothing"), "--yes", code=4)["error"]
    assert "config.json" in error["why"]
    assert not home.state(NAME).exists()


@pytest.mark.slow
def test_a_model_that_cannot_load_fails_with_the_engine_s_log_and_up_repairs_it(home: Home) -> None:
    port = free_port()
    broken = home.folder / "broken"
    broken.mkdir()
    shape = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 64, "vocab_size": 64,
             "num_attention_heads": 2, "num_hidden_layers": 1, "max_position_embeddings": 4096}  # fmt: skip
    (broken / "config.json").write_text(json.dumps(shape))
    (broken / "model.safetensors").write_bytes(bytes(64))
    error = home.json("up", NAME, "--model", str(broken), "--port", str(port), "--yes", code=9)["error"]
    assert error["next"].startswith(f"deployctl logs {NAME} --")
    assert home.json("status", NAME, code=9)["life"] == "failed"
    assert home.run("logs", NAME, "--agent").stdout
    done = home.run("up", NAME, "--model", "demo", "--port", str(port), "--yes")
    assert f"http://127.0.0.1:{port}/v1" in done.stdout
