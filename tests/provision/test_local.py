"""provision.local with a real supervisor and agent; the model is missing, so that no engine is needed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from provision import local, process
from provision.errors import DiskFullError, MissingPartError, NotRunningError, PortTakenError, StateError
from provision.local import LocalTarget
from provision.render import Order, render
from provision.spec import parse
from provision.state import locked, open_state
from provision.target import LogQuery, Observation
from runtime.deployment import EngineOptions, Predicted

T = TypeVar("T")
ENGINE = EngineOptions(dtype="float32", device="cpu", max_model_len=2048, max_num_seqs=8)
PREDICTED = Predicted(weights_bytes=1, kv_bytes_per_token=2, kv_blocks=3, activation_bytes=4)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def target() -> Iterator[LocalTarget]:
    target = LocalTarget(open_state("chat"))
    yield target
    target.remove()


def free_port() -> int:
    return process.free_port("127.0.0.1", 20000 + os.getpid() % 20000)


def order(release: str, port: int, model: str = "/nowhere/model") -> Order:
    spec = parse({"name": "chat", "model": model, "port": port})
    return render(spec, ENGINE, PREDICTED, release=release, api_key="sk-of-this-test-0123456789")


def wait_for(look: Callable[[], T | None], timeout_s: float = 30.0) -> T:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (found := look()) is not None:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s} s")


def failed(target: LocalTarget, release: str) -> Callable[[], Observation | None]:
    def look() -> Observation | None:
        seen = target.observe()
        return seen if seen.life == "failed" and seen.release == release else None

    return look


def test_a_missing_model_is_reported_with_its_phase_and_a_hint(target: LocalTarget) -> None:
    target.start(order("r1", free_port()))
    seen = wait_for(failed(target, "r1"))
    assert seen.phase == "weights"
    assert "/nowhere/model" in (seen.error or "")
    error = local.failure_of(target, seen)
    assert error.next_command == "deployctl logs chat --agent"
    assert "/nowhere/model" in str(error)


def test_the_port_is_open_while_it_starts_and_free_after_removal(target: LocalTarget) -> None:
    port = free_port()
    target.start(order("r1", port))
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    pids = [record.pid for record in target.observe().processes]
    assert pids
    removal = target.remove()
    assert removal.is_clean
    assert removal.port == port
    assert process.is_port_free("127.0.0.1", port)
    assert not any(process.start_ticks(pid) for pid in pids)
    assert not target.state.exists()


def test_the_next_release_is_taken_up_by_the_running_machine(target: LocalTarget) -> None:
    port = free_port()
    target.start(order("r1", port))
    supervisor = target.observe().processes[0].pid
    wait_for(failed(target, "r1"))
    target.change(order("r2", port, "/nowhere/else"))
    assert target.observe().wanted_release == "r2"
    assert "/nowhere/else" in (wait_for(failed(target, "r2")).error or "")
    assert target.observe().processes[0].pid == supervisor


def test_going_back_restores_the_spec_of_the_release(target: LocalTarget) -> None:
    port = free_port()
    target.start(order("r1", port))
    target.change(order("r2", port, "/nowhere/else"))
    target.go_back("r1")
    assert target.observe().wanted_release == "r1"
    assert (target.state.spec_values() or {})["model"] == "/nowhere/model"


def test_stopping_keeps_the_state_and_start_follows(target: LocalTarget) -> None:
    port = free_port()
    target.start(order("r1", port))
    target.stop()
    assert target.observe().life == "stopped"
    assert target.state.api_key() is not None
    target.start(order("r2", port))
    assert target.observe().wanted_release == "r2"


def test_a_new_life_begins_without_the_error_of_the_old_one(target: LocalTarget) -> None:
    port = free_port()
    target.start(order("r1", port))
    first = wait_for(failed(target, "r1"))
    target.stop()
    target.start(order("r1", port))
    second = wait_for(failed(target, "r1"))
    assert (second.updated_at or 0) > (first.updated_at or 0) + 0.1


def test_logs_come_from_the_machine(target: LocalTarget) -> None:
    target.start(order("r1", free_port()))
    wait_for(failed(target, "r1"))
    lines = list(target.logs(LogQuery(units=("supervisor",))))
    assert any("listens on" in line.text for line in lines)
    assert all(line.at is not None for line in lines)


def test_a_port_of_another_process_is_refused_before_anything_is_written(target: LocalTarget) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"pid {os.getpid()}") as caught:
            target.start(order("r1", port))
    assert "--port" in (caught.value.next_command or "")
    assert not target.state.exists()


def test_a_port_of_another_deployment_is_refused_by_its_name(target: LocalTarget) -> None:
    port = free_port()
    target.start(order("r1", port))
    with pytest.raises(PortTakenError, match="deployment chat listens there"):
        local.check_port(open_state("other"), port)


def test_a_full_disk_is_named_before_anything_starts(target: LocalTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MIN_FREE_BYTES", 2**62)
    with pytest.raises(DiskFullError, match="MiB free"):
        target.start(order("r1", free_port()))
    assert not target.state.exists()


def test_a_missing_part_of_the_installation_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "DEMO_MODULES", ("torch", "no_such_module"))
    with pytest.raises(MissingPartError, match="no_such_module") as caught:
        local.check_parts("demo")
    assert caught.value.next_command == "pip install 'deployctl[demo]'"
    local.check_parts("/a/folder")


def test_changing_what_does_not_run_says_how_to_start_it(target: LocalTarget) -> None:
    with pytest.raises(NotRunningError) as caught:
        target.change(order("r1", free_port()))
    assert caught.value.next_command == "deployctl up --name chat"
    with pytest.raises(NotRunningError):
        target.access()


def test_removal_works_without_any_record_of_the_processes(target: LocalTarget) -> None:
    target.start(order("r1", free_port()))
    pids = [
        record.pid
        for record in wait_for(lambda: target.observe() if len(target.observe().processes) > 2 else None).processes
    ]
    (target.state.machine_dir / "supervisor.json").unlink()
    removal = target.remove()
    assert removal.is_clean
    assert not any(process.start_ticks(pid) for pid in pids)


def test_removal_works_on_a_supervisor_that_hangs(target: LocalTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP: it answers nothing and ignores SIGTERM until it is killed."""
    target.start(order("r1", free_port()))
    monkeypatch.setattr(local, "STOP_GRACE_S", 0.5)
    pid = target.observe().processes[0].pid
    os.kill(pid, signal.SIGSTOP)
    assert target.remove().is_clean
    assert process.start_ticks(pid) is None


def test_removal_leaves_a_pager_on_a_log_alone(target: LocalTarget) -> None:
    target.start(order("r1", free_port()))
    log = target.state.logs_dir / "supervisor.log"
    tail = shutil.which("tail") or "tail"
    reader = subprocess.Popen([tail, "-f", str(log)], stdout=subprocess.DEVNULL)
    try:
        assert target.remove().is_clean
        assert reader.poll() is None
    finally:
        reader.kill()
        reader.wait()


def test_removal_of_nothing_is_clean(target: LocalTarget) -> None:
    removal = target.remove()
    assert removal.is_clean
    assert removal.ended == ()


def test_removal_of_a_file_in_the_folder_s_place_is_clean(target: LocalTarget) -> None:
    target.state.root.parent.mkdir(parents=True)
    target.state.root.write_text("not a folder")
    assert target.remove().is_clean
    assert not target.state.root.exists()


def test_a_damaged_status_is_an_error_that_names_the_file(target: LocalTarget) -> None:
    target.state.mailbox.put("status/status.json", json.dumps({"phase": "dancing"}).encode())
    with pytest.raises(StateError, match=r"status\.json"):
        target.observe()
    with locked(target.state, "deployctl down"):
        assert target.remove().is_clean
