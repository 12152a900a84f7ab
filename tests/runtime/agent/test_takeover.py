"""A release takes over from another one under a real supervisor: the old server serves until the new one accepts."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from agent_machine import Machine, wait_for

from runtime.agent.files import PRIVATE
from runtime.agent.fingerprint import Fingerprints, difference
from runtime.agent.takeover import Takeover
from runtime.deployment import Weights
from runtime.handover import HANDOVER, ProcessId
from runtime.mailbox import RELEASES, decode_releases


def test_while_a_release_takes_over_every_question_is_answered_by_one_server_or_the_other(machine: Machine) -> None:
    machine.serve("r1")
    answers: list[int | str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                answers.append(machine.get("/pid")[0])
            except OSError as error:
                answers.append(repr(error))

    asking = threading.Thread(target=ask)
    asking.start()
    machine.deploy("r2")
    status = machine.wait_ready("r2")
    over.set()
    asking.join()
    assert set(answers) == {200}
    assert status.held_s is not None
    assert status.held_s < 15
    assert not (machine.state / "run" / HANDOVER).exists()


def test_nobody_is_held_before_a_release_has_ever_served(machine: Machine) -> None:
    machine.deploy("r1", "slow")
    machine.start()
    machine.wait_status(lambda s: s.phase == "load" and s.percent is not None, "r1 loads")
    found = Takeover(machine.state / "run", PRIVATE).read()
    assert found is None or not found.held
    (machine.state / "releases" / "r1" / "go").touch()
    assert machine.wait_ready("r1").held_s is None


def test_a_server_that_does_not_accept_leaves_the_one_before_alone(machine: Machine) -> None:
    machine.serve("r1")
    before = machine.pid("server"), machine.pid("engine")
    machine.deploy("r2", "deaf")
    status = machine.wait_way_back()
    assert status.release == "r1"
    assert "this server cannot accept" in (status.error or "")
    assert (machine.pid("server"), machine.pid("engine")) == before
    assert machine.get("/health")[0] == 200


@pytest.mark.slow
def test_an_engine_whose_first_answer_is_empty_is_rolled_back(machine: Machine) -> None:
    machine.serve("r1")
    machine.deploy("r2", "empty")
    status = machine.wait_way_back()
    assert status.release == "r1"
    assert "release r2 failed in phase serve: the model's first answer is none: it is empty" in (status.error or "")
    assert machine.get("/health")[0] == 200


@pytest.mark.slow
def test_another_first_answer_than_the_recorded_one_is_a_warning(machine: Machine) -> None:
    machine.serve("r1")
    machine.deploy("r2", "other")
    status = machine.wait_ready("r2")
    assert "does not answer as it did in release r1" in (status.hint or "")
    assert "from number 3 on" in (status.hint or "")


@pytest.mark.slow
def test_going_back_to_a_release_that_does_not_load_any_more_ends_at_the_one_that_served(machine: Machine) -> None:
    machine.serve("r1")
    machine.deploy("r2")
    machine.wait_ready("r2")
    machine.deploy("r1", "refuse")
    status = machine.wait_way_back()
    assert status.release == "r2"
    assert "release r1 failed in phase load" in (status.error or "")
    assert machine.get("/health")[0] == 200


@pytest.mark.slow
def test_the_machine_tells_which_releases_it_keeps_and_which_one_serves(machine: Machine) -> None:
    machine.serve("r1")
    machine.deploy("r2", "refuse")
    machine.wait_way_back()

    def told() -> dict[str, str] | None:
        found = {entry.release: entry.state for entry in decode_releases(machine.mailbox.get(RELEASES) or b"[]")}
        return found if len(found) == 2 else None

    assert wait_for(told, "two releases") == {"r1": "serving", "r2": "failed"}


@pytest.mark.slow
def test_an_agent_killed_while_requests_are_held_ends_the_hold_later(machine: Machine) -> None:
    machine.serve("r1")
    machine.deploy("r2", "slow")
    takeover = Takeover(machine.state / "run", PRIVATE)
    wait_for(lambda: (found := takeover.read()) is not None and found.release == "r2", "a hold for r2")
    agent = ProcessId.of(machine.pid("agent"))
    assert agent is not None
    agent.send(signal.SIGKILL)
    wait_for(lambda: machine.units.state("agent").pid not in (None, agent.pid), "a new agent")
    (machine.state / "releases" / "r2" / "go").touch()
    assert machine.wait_ready("r2").held_s is not None
    assert takeover.read() is None


def test_a_fingerprint_is_kept_for_each_commit_of_the_weights(tmp_path: Path, machine: Machine) -> None:
    machine.deploy("r1")
    deployment = machine.deployment("r1")
    fingerprints = Fingerprints(tmp_path, PRIVATE)
    first, second = (Weights(path="/w", revision=name) for name in ("abc", "def"))
    assert fingerprints.compare(deployment, first, (1, 2, 3)) is None
    assert fingerprints.compare(deployment, second, (4, 5, 6)) is None
    assert fingerprints.compare(deployment, first, (1, 2, 3)) is None
    assert fingerprints.compare(deployment, first, (1, 2, 9)) is not None


def test_an_answer_cut_short_by_the_context_is_the_same_answer() -> None:
    assert difference((1, 2, 3), (1, 2)) is None
    assert difference((1, 2, 3), (1, 9)) == 1


def test_a_process_is_told_apart_from_another_one_with_its_pid() -> None:
    me = ProcessId.of(os.getpid())
    assert me is not None
    assert me.is_alive
    assert ProcessId.parse(str(me)) == me
    assert not ProcessId(me.pid, me.started_at + 1).is_alive


def test_an_engine_that_dies_once_at_its_first_question_is_tried_again(machine: Machine) -> None:
    machine.deploy("r1", "faint")
    machine.start()
    machine.wait_ready("r1")
    assert (machine.state / "releases" / "r1" / "fainted").read_text() == "once"


def test_in_a_redeploy_the_release_before_serves_at_once(machine: Machine) -> None:
    machine.serve("r1")
    machine.deploy("r2", "faint")
    status = machine.wait_way_back()
    assert status.release == "r1"
    assert "release r2 failed in phase serve" in (status.error or "")
