"""The supervisor with real processes, sockets and signals; server and engine are scripted."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from agent_machine import ROOT, Machine, wait_for

from runtime.agent.control import SupervisorClient
from runtime.agent.logs import LogFile
from runtime.agent.rundir import make_run_dir, remove_run_dir
from runtime.agent.supervisor import RECORD_NAME, Record, read_record
from runtime.agent.units import RestartHistory, RestartPolicy, UnitError, UnitState
from runtime.handover import start_ticks


def supervise(state: Path, mailbox: Path, port: int) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "runtime.cli", "supervise", "--state", str(state), "--mailbox", str(mailbox)]
    argv += ["--host", "127.0.0.1", "--port", str(port)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30, check=False)


def failed(machine: Machine, unit: str) -> UnitState | None:
    state = machine.units.state(unit)
    return state if state.state == "failed" else None


def test_a_taken_port_is_exit_3_and_names_host_and_port(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = supervise(tmp_path / "machine", tmp_path / "mailbox", port)
    assert done.returncode == 3
    assert f"cannot listen on 127.0.0.1:{port}: address already in use" in done.stderr
    assert "--port" in done.stderr


def test_a_second_supervisor_of_one_folder_is_exit_4_and_names_the_first(machine: Machine) -> None:
    machine.deploy("r1")
    record = machine.start()
    done = supervise(machine.state, machine.mailbox.root, 0)
    assert done.returncode == 4
    assert str(record.pid) in done.stderr


def test_the_port_answers_before_any_weights_are_there(machine: Machine) -> None:
    machine.deploy("r1", source="/no/such/folder")
    machine.start()
    assert machine.get("/health")[0] == 503


def test_sigterm_leaves_no_process_socket_record_or_port(machine: Machine) -> None:
    machine.deploy("r1")
    record = machine.start()
    machine.wait_ready("r1")
    assert machine.stop() == 0
    assert machine.processes() == []
    assert sorted(path.name for path in machine.state.iterdir()) == [
        "current",
        "fingerprints.json",
        "last-request",
        "logs",
        "releases",
    ]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((record.host, record.port))
    status = machine.status()
    assert status is not None
    assert status.phase == "stopped"


def test_shutdown_over_the_control_socket_does_the_same(machine: Machine) -> None:
    machine.serve("r1")
    machine.units.shutdown()
    assert machine.process is not None
    assert machine.process.wait(15) == 0
    assert machine.processes() == []


def test_kill_9_of_the_supervisor_takes_every_unit_with_it(machine: Machine) -> None:
    machine.serve("r1")
    assert len(machine.processes()) >= 4
    assert machine.process is not None
    machine.process.kill()
    machine.process.wait()
    wait_for(lambda: machine.processes() == [], "no process is left")
    assert machine.record() is None  # the file is still there, and known to be stale
    assert (machine.state / RECORD_NAME).exists()


def test_after_kill_9_the_next_start_serves_again(machine: Machine) -> None:
    machine.serve("r1")
    assert machine.process is not None
    machine.process.kill()
    machine.process.wait()
    wait_for(lambda: machine.processes() == [], "no process is left")
    machine.start()
    wait_for(lambda: machine.get("/health")[0] == 200, "ready again")
    machine.wait_ready("r1")


@pytest.mark.parametrize("unit", ["agent", "server", "engine"])
def test_a_unit_killed_with_9_comes_back_and_the_others_stay(machine: Machine, unit: str) -> None:
    machine.serve("r1")
    before = {name: machine.pid(name) for name in ("agent", "server", "engine")}
    os.kill(before[unit], signal.SIGKILL)
    wait_for(lambda: machine.units.state(unit).pid not in (None, before[unit]), f"a new {unit}")
    assert machine.units.state(unit).exit_code == -signal.SIGKILL
    wait_for(lambda: machine.get("/health")[0] == 200, "ready again")
    machine.wait_ready("r1")
    after = {name: machine.pid(name) for name in before}
    assert {name for name in before if before[name] != after[name]} == {unit}


def test_connections_during_a_server_restart_wait_and_are_not_refused(machine: Machine) -> None:
    machine.serve("r1")
    answers: list[int | str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                answers.append(machine.get("/pid")[0])
            except OSError as error:
                answers.append(repr(error))

    thread = threading.Thread(target=ask)
    thread.start()
    first = machine.get("/pid")[1]["pid"]
    machine.units.restart("server")
    second = machine.get("/pid")[1]["pid"]
    stop.set()
    thread.join()
    assert first != second
    assert set(answers) == {200}


def test_a_crash_loop_ends_as_failed_with_code_and_last_line(machine: Machine) -> None:
    machine.deploy("r1", "crash")
    machine.env["SCRIPTED_AGENT"] = "0"  # it would stop what has failed
    machine.start()
    machine.units.start("engine")
    state = wait_for(lambda: failed(machine, "engine"), "a failed engine")
    assert state.exit_code == 70
    assert state.exits == 5
    assert state.last_lines[-1] == "error: the engine fell over | hint: look at the log"


def test_exit_78_is_not_tried_again(machine: Machine) -> None:
    machine.deploy("r1", "refuse")
    machine.env["SCRIPTED_AGENT"] = "0"
    machine.start()
    machine.units.start("engine")
    state = wait_for(lambda: failed(machine, "engine"), "a failed engine")
    assert (state.exit_code, state.exits) == (78, 1)


@pytest.mark.parametrize(("behaviour", "said"), [("crash", "keeps ending (exit code 70)"), ("refuse", "hidden_act")])
def test_an_engine_that_was_given_up_is_stopped_and_the_status_says_why(
    machine: Machine, behaviour: str, said: str
) -> None:
    machine.deploy("r1", behaviour)
    machine.start()
    status = machine.wait_status(lambda s: s.error is not None, "an error")
    assert status.phase == "load"
    assert said in (status.error or "")
    assert machine.units.state("engine").state == "stopped"


def test_an_unknown_unit_is_refused_with_the_known_ones(machine: Machine) -> None:
    machine.deploy("r1")
    machine.start()
    with pytest.raises(UnitError, match="agent, server, engine"):
        machine.units.state("motor")


def test_a_missing_supervisor_is_an_error_that_names_the_socket(tmp_path: Path) -> None:
    with pytest.raises(UnitError, match=r"does not answer on .*control\.sock"):
        SupervisorClient(tmp_path).start("engine")


def test_sockets_and_folders_are_private(machine: Machine) -> None:
    machine.deploy("r1")
    machine.start()
    run = machine.state / "run"
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    assert stat.S_IMODE((run / "control.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE((machine.state / "logs" / "supervisor.log").stat().st_mode) == 0o600


def test_a_deep_state_folder_gets_a_short_run_folder_and_loses_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    state = tmp_path / ("d" * 100)
    state.mkdir()
    run = make_run_dir(state)
    assert len(os.fsencode(run / "control.sock")) <= 107
    assert (state / "run").resolve() == run
    assert make_run_dir(state) == run
    remove_run_dir(state)
    assert not run.exists()
    assert not (state / "run").is_symlink()


def test_a_foreign_run_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    state = tmp_path / ("d" * 100)
    state.mkdir()
    make_run_dir(state).chmod(0o755)
    with pytest.raises(PermissionError, match="not a private folder"):
        make_run_dir(state)


def test_a_record_whose_pid_belongs_to_another_process_is_stale(tmp_path: Path) -> None:
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    record = f'{{"pid": {os.getpid()}, "started_at": %d, "host": "127.0.0.1", "port": 1}}'
    (tmp_path / RECORD_NAME).write_text(record % ticks)
    assert read_record(tmp_path) == Record(pid=os.getpid(), started_at=ticks, host="127.0.0.1", port=1)
    (tmp_path / RECORD_NAME).write_text(record % (ticks - 1))
    assert read_record(tmp_path) is None


def test_back_off_doubles_up_to_its_limit_and_starts_anew_after_a_good_run() -> None:
    history = RestartHistory(RestartPolicy(loop_exits=100))
    delays = [history.delay_after_exit(float(second), 1.0) for second in range(7)]
    assert delays == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert history.delay_after_exit(100.0, 31.0) == 0.2


def test_five_exits_in_a_minute_are_a_crash_loop_and_slower_ones_are_not() -> None:
    quick = RestartHistory(RestartPolicy())
    assert [quick.delay_after_exit(10.0 * n, 1.0) is None for n in range(5)] == [False] * 4 + [True]
    slow = RestartHistory(RestartPolicy())
    assert all(slow.delay_after_exit(16.0 * n, 1.0) is not None for n in range(20))


def test_each_log_line_begins_with_its_time_in_utc(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "unit.log")
    log.feed(b"half a ")
    log.feed(b"line\nand the rest")
    log.close()
    lines = (tmp_path / "unit.log").read_text().splitlines()
    assert [line.partition(" ")[2] for line in lines] == ["half a line", "and the rest"]
    seen = time.strftime("%Y-%m-%dT%H:", time.gmtime())
    assert all(line.startswith(seen) and line.partition(" ")[0].endswith("Z") for line in lines)


def test_a_progress_bar_is_one_log_line(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "unit.log")
    log.feed(b"10 %\r50 %\r100 %\ndone\r\n")
    log.close()
    lines = (tmp_path / "unit.log").read_text().splitlines()
    assert [line.partition(" ")[2] for line in lines] == ["100 %", "done"]


def test_a_log_is_rotated_by_size_and_one_older_file_is_kept(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "unit.log", max_bytes=1000)
    for number in range(100):
        log.line(f"line {number}")
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unit.log", "unit.log.1"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert (tmp_path / "unit.log").read_text().endswith("line 99\n")


def test_the_last_words_of_a_killed_unit_are_in_its_log(machine: Machine) -> None:
    machine.serve("r1")
    os.kill(machine.pid("engine"), signal.SIGKILL)
    wait_for(lambda: machine.units.state("engine").exits == 1, "the exit is noticed")
    log = machine.log("engine")
    assert log.index("engine of r1: ok") < log.index("exit -9, next start in")


def test_what_a_restarted_unit_says_reaches_its_log_every_time(machine: Machine) -> None:
    """The new process's pipe may get the number that the old one's had."""
    machine.serve("r1")
    for count in range(2, 8):
        machine.units.restart("engine")
        wait_for(lambda count=count: machine.log("engine").count("engine of r1") == count, f"word {count}", 10.0)


def test_many_clients_at_the_moment_of_an_exit_do_not_end_the_supervisor(machine: Machine) -> None:
    machine.deploy("r1")
    record = machine.start()
    machine.wait_ready("r1")
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            machine.units.state("agent")

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):  # a fifth would be a crash loop
            old = machine.pid("engine")
            os.kill(old, signal.SIGKILL)
            wait_for(lambda old=old: machine.units.state("engine").pid not in (None, old), "a new engine")
    finally:
        done.set()
        for thread in threads:
            thread.join(10)
    assert machine.record() == record
