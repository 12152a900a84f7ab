"""However the engine dies: its streams end with an error event in time, /health says so, it comes back by itself."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.ipc import Submit
from tests.chaos.ask import authorized, encode
from tests.chaos.faults import BACK_S, FAULTS, HANG_DEADLINE_S, Fault
from tests.chaos.machine import HOST, ROOT, Machine, wait_for
from tests.chaos.setting import MODEL
from tests.runtime.engine.engine_process import DEADLINE_S, Peer, greedy, write_release

LONG = {"model": MODEL, "prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True}
STEP_FAULT_S = 5.0  # to the end of a stream whose next step breaks; the machine is loaded
ENGINE_FAULTS = [fault for fault in FAULTS if fault.unit == "engine" and not fault.resumes]


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.lab import checkpoints

    folder = tmp_path_factory.mktemp("model")
    checkpoints.save("llama", folder)
    return folder


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGUSR1, "an exception in a kernel"),
        pytest.param(signal.SIGUSR2, "allocate memory", marks=pytest.mark.slow),
    ],
)
def test_what_breaks_in_a_step_ends_the_engine_with_70_and_its_traceback(
    small_model: Path, tmp_path: Path, number: signal.Signals, said: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    release = write_release(tmp_path / "r1", small_model)
    argv = [sys.executable, "-m", "tests.chaos.engine", "--release", str(release), "--run", str(run)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(argv, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    try:
        peer = Peer(run / "engine.sock")
        peer.until_ready()
        process.send_signal(number)
        peer.send(Submit("a", [1, 2, 3], greedy(250)))
        _, errors = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 70
    assert "Traceback" in errors
    assert said in errors


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("chaos"))
    machine.start()
    yield machine
    machine.stop()


def open_stream(machine: Machine) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(HOST, machine.port, timeout=60)
    connection.request("POST", "/v1/completions", encode(LONG), dict(authorized()))
    response = connection.getresponse()
    assert response.status == 200, response.read()
    response.readline()  # it is under way
    return connection, response


@pytest.mark.slow
@pytest.mark.parametrize("fault", ENGINE_FAULTS, ids=lambda fault: fault.name)
def test_open_streams_end_in_time_and_the_engine_is_back_by_itself(machine: Machine, fault: Fault) -> None:
    before = machine.unit("engine")
    connection, response = open_stream(machine)
    struck = time.monotonic()
    machine.signal("engine", fault.number, ends=fault.ends)
    events = response.read().decode().strip().split("\n\n")
    connection.close()
    assert time.monotonic() - struck < (HANG_DEADLINE_S if fault.deadline_s == HANG_DEADLINE_S else STEP_FAULT_S)
    last = json.loads(events[-1].removeprefix("data: "))
    assert last["error"]["code"] == "engine_lost"

    status, body = machine.get("/health")
    assert status == 503
    assert {"phase", "percent", "eta_s", "error", "hint"} <= set(json.loads(body))
    refused, headers = ask(machine)
    assert refused == 503
    assert headers["retry-after"].isdecimal()

    wait_for(lambda: machine.is_ready() or None, "the engine is back", BACK_S)
    after = machine.unit("engine")
    assert after.pid not in (None, before.pid)
    if fault.ends:
        assert after.exit_code == (-signal.SIGKILL if fault.number == signal.SIGKILL else 70)
    assert ask(machine)[0] == 200
    gauges = machine.gauges()
    assert gauges["deployctl_num_requests_running"] == gauges["deployctl_kv_cache_usage_perc"] == 0


def ask(machine: Machine) -> tuple[int, dict[str, str]]:
    """Status and headers of one short request."""
    connection = http.client.HTTPConnection(HOST, machine.port, timeout=60)
    try:
        body = encode({"model": MODEL, "prompt": "a", "max_tokens": 2})
        connection.request("POST", "/v1/completions", body, dict(authorized()))
        response = connection.getresponse()
        response.read()
        return response.status, {name.lower(): value for name, value in response.getheaders()}
    finally:
        connection.close()
