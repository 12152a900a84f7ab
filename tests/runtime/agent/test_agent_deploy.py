"""The agent under a real supervisor: deployments that succeed, fail, are tried again, replaced and rolled back."""

from __future__ import annotations

import json
import os
import signal
from importlib import metadata

import psutil
import pytest
from agent_machine import Machine, make_model_folder, wait_for

from runtime.agent.releases import Releases
from runtime.deployment import Deployment, encode
from runtime.mailbox import (
    BUILT,
    CURRENT,
    PHASES,
    RELEASES,
    Current,
    Status,
    decode_built,
    decode_releases,
    release_key,
)


def test_a_first_deployment_becomes_ready_and_answers(machine: Machine) -> None:
    machine.serve("r1")
    assert machine.get("/health")[0] == 200


def test_a_release_that_is_ready_has_said_what_it_runs_on(machine: Machine) -> None:
    machine.serve("r1")
    built = decode_built(machine.mailbox.get(BUILT) or b"")
    assert (built.release, built.torch, built.driver) == ("r1", metadata.version("torch"), None)


def test_with_everything_cached_supervisor_and_agent_work_less_than_a_second(machine: Machine) -> None:
    """Processor time until the engine is spawned, which a busy machine does not stretch as it does the clock."""
    machine.deploy("r1")
    record = machine.start()
    machine.pid("engine")
    used = [psutil.Process(pid).cpu_times() for pid in (record.pid, machine.pid("agent"))]
    assert sum(times.user + times.system for times in used) <= 1.0


def test_loading_shows_percent_and_then_ready(machine: Machine) -> None:
    machine.deploy("r1", "slow")
    machine.start()
    machine.wait_status(lambda s: s.phase == "load" and (s.percent or 0) > 2, "percent of the load")
    (machine.state / "releases" / "r1" / "go").touch()
    machine.wait_ready("r1")


def test_an_unsupported_model_ends_with_the_engines_error_and_hint(machine: Machine) -> None:
    machine.deploy("r1", "refuse")
    machine.start()
    status = machine.wait_status(lambda s: s.error is not None, "an error")
    assert (status.release, status.phase) == ("r1", "load")
    assert status.error == "engine: config.json: hidden_act: 'gelu' is not supported"
    assert status.hint == "choose another model"


def test_a_crash_loop_ends_with_the_last_line_and_a_hint(machine: Machine) -> None:
    machine.deploy("r1", "crash")
    machine.start()
    status = machine.wait_status(lambda s: s.error is not None, "an error")
    assert status.phase == "load"
    assert status.error is not None
    assert "exit code 70" in status.error
    assert "the engine fell over" in status.error
    assert status.hint == "look at the log"


def test_a_missing_model_folder_is_tried_again_until_it_is_there(machine: Machine) -> None:
    folder = machine.root / "later"
    machine.deploy("r1", source=str(folder))
    machine.start()
    status = machine.wait_status(lambda s: s.error is not None, "an error")
    assert status.phase == "weights"
    assert str(folder) in (status.error or "")
    make_model_folder(folder)
    machine.wait_ready("r1")


def test_a_full_disk_names_bytes_needed_and_free_and_recovers(machine: Machine) -> None:
    machine.full_disk.touch()
    machine.deploy("r1")
    machine.start()
    status = machine.wait_status(lambda s: s.error is not None, "an error")
    assert status.phase == "disk"
    assert "bytes" in (status.error or "")
    assert "1000 bytes" in (status.error or "")
    assert "deployctl up" in (status.hint or "")
    machine.full_disk.unlink()
    machine.wait_ready("r1")


def test_a_release_that_the_mailbox_lacks_is_an_error_with_its_key(machine: Machine) -> None:
    machine.deploy("r1")
    (machine.mailbox.root / "release" / "r1" / "deployment.json").unlink()
    machine.start()
    status = machine.wait_status(lambda s: s.error is not None, "an error")
    assert "release/r1/deployment.json is missing" in (status.error or "")
    machine.deploy("r2")
    machine.wait_ready("r2")


def test_a_redeploy_replaces_engine_and_server_and_keeps_the_port(machine: Machine) -> None:
    machine.deploy("r1")
    record = machine.start()
    machine.wait_ready("r1")
    before = machine.pid("server"), machine.pid("engine")
    machine.deploy("r2")
    machine.wait_ready("r2")
    assert machine.record() == record
    assert {machine.pid("server"), machine.pid("engine")}.isdisjoint(before)
    assert machine.units.state("engine").release == "r2"
    assert machine.get("/health")[0] == 200


def test_the_old_release_serves_while_the_new_one_prepares(machine: Machine) -> None:
    machine.serve("r1")
    engine = machine.pid("engine")
    machine.deploy("r2", source="/no/such/folder")
    status = machine.wait_status(lambda s: s.error is not None, "an error")
    assert (status.release, status.phase) == ("r1", "ready")
    assert "release r2 failed in phase weights" in (status.error or "")
    assert "r1 still serves" in (status.error or "")
    assert machine.pid("engine") == engine
    assert machine.get("/health")[0] == 200


def test_a_release_that_does_not_load_is_rolled_back(machine: Machine) -> None:
    machine.serve("r1")
    machine.deploy("r2", "refuse")
    status = machine.wait_way_back()
    assert status.release == "r1"
    assert "release r2 failed in phase load: engine: config.json: hidden_act" in (status.error or "")
    assert machine.get("/health")[0] == 200
    assert machine.units.state("engine").release == "r1"


def test_when_the_way_back_fails_too_the_error_is_that_of_the_wanted_release(machine: Machine) -> None:
    machine.serve("r1")
    previous = machine.state / "releases" / "r1" / "deployment.json"
    previous.write_text(previous.read_text().replace('"ok"', '"refuse"'))
    machine.deploy("r2", "refuse")
    status = machine.wait_status(lambda s: "does not come back either" in (s.error or ""), "both failures")
    assert (status.release, status.phase) == ("r2", "load")


def test_after_a_rollback_a_restart_of_the_agent_does_not_try_the_bad_release_again(machine: Machine) -> None:
    machine.serve("r1")
    machine.deploy("r2", "refuse")
    told = machine.wait_way_back()
    engine = machine.pid("engine")
    restart_agent(machine)
    machine.wait_status(lambda s: s.updated_at > told.updated_at and s.error == told.error, "the same status")
    assert machine.pid("engine") == engine


def test_after_a_rollback_the_next_release_is_taken(machine: Machine) -> None:
    machine.serve("r1")
    machine.deploy("r2", "crash")
    machine.wait_way_back()
    machine.deploy("r3")
    machine.wait_ready("r3")


def test_a_newer_release_ends_the_loading_of_the_one_before(machine: Machine) -> None:
    machine.deploy("r1", "slow")
    machine.start()
    machine.wait_status(lambda s: s.phase == "load", "r1 loads")
    machine.deploy("r2")
    machine.wait_ready("r2")


def test_a_restarted_agent_leaves_what_is_ready_alone(machine: Machine) -> None:
    ready = machine.serve("r1")
    before = machine.pid("server"), machine.pid("engine")
    seen = watch_statuses(machine, lambda: restart_agent(machine), after=ready.updated_at)
    assert (machine.pid("server"), machine.pid("engine")) == before
    assert {status.phase for status in seen} == {"ready"}


def test_an_agent_killed_while_loading_goes_on_with_the_same_engine(machine: Machine) -> None:
    machine.deploy("r1", "slow")
    machine.start()
    machine.wait_status(lambda s: s.phase == "load" and s.percent is not None, "r1 loads")
    engine = machine.pid("engine")
    restart_agent(machine)
    (machine.state / "releases" / "r1" / "go").touch()
    machine.wait_ready("r1")
    assert machine.pid("engine") == engine


def test_an_engine_that_dies_later_is_shown_as_load_and_then_ready(machine: Machine) -> None:
    machine.deploy("r1", "slow")
    machine.start()
    go = machine.state / "releases" / "r1" / "go"
    wait_for(go.parent.exists, "the release is there")
    go.touch()
    machine.wait_ready("r1")
    go.unlink()
    os.kill(machine.pid("engine"), signal.SIGKILL)
    machine.wait_status(lambda s: s.phase == "load" and s.percent is not None, "it loads again")
    go.touch()
    machine.wait_ready("r1")


def test_an_engine_that_hangs_is_restarted(machine: Machine) -> None:
    machine.env["SCRIPTED_PATIENCE_S"] = "2"
    machine.deploy("r1", "stuck")
    machine.start()
    go = machine.state / "releases" / "r1" / "go"
    wait_for(go.parent.exists, "the release is there")
    go.touch()
    machine.wait_ready("r1")
    hanging = machine.pid("engine")
    go.unlink()
    wait_for(lambda: machine.units.state("engine").pid not in (None, hanging), "a new engine")
    go.touch()
    machine.wait_ready("r1")


def test_an_engine_that_makes_no_step_any_more_is_restarted_soon(machine: Machine) -> None:
    machine.deploy("r1", "silent")
    machine.start()
    go = machine.state / "releases" / "r1" / "go"
    wait_for(go.parent.exists, "the release is there")
    go.touch()
    machine.wait_ready("r1")
    hanging = machine.pid("engine")
    go.unlink()
    wait_for(lambda: machine.units.state("engine").pid not in (None, hanging), "a new engine")
    go.touch()
    machine.wait_ready("r1")


def test_a_load_that_stands_still_is_given_up_with_what_health_says(machine: Machine) -> None:
    machine.env["SCRIPTED_PATIENCE_S"] = "2"
    machine.deploy("r1", "stuck")
    machine.start()
    status = machine.wait_status(lambda s: s.error is not None, "an error")
    assert "no progress for 2 s while loading" in (status.error or "")
    wait_for(lambda: machine.units.state("engine").state == "stopped", "the engine is stopped")


def test_a_release_of_a_newer_version_changes_nothing_and_says_how_to_start_that_version(machine: Machine) -> None:
    machine.serve("r1")
    engine = machine.pid("engine")
    machine.mailbox.put(release_key("r2"), of_a_newer_version(machine.deployment("r1")))
    machine.mailbox.put(CURRENT, encode(Current(release="r2", deployment=release_key("r2"))))
    status = machine.wait_status(lambda s: s.error is not None, "an error")
    assert (status.release, status.phase) == ("r1", "ready")
    assert "unknown field `shiny`" in (status.error or "")
    assert "another version" in (status.error or "")
    assert "`deployctl stop`, then `deployctl wake`" in (status.hint or "")
    assert machine.pid("engine") == engine
    assert not (machine.state / "releases" / "r2" / "deployment.json").exists()


@pytest.mark.slow
def test_a_release_of_a_newer_version_that_is_kept_does_not_disturb_an_older_agent(machine: Machine) -> None:
    machine.serve("r1")
    kept = machine.state / "releases" / "newer"
    kept.mkdir()
    (kept / "deployment.json").write_bytes(of_a_newer_version(machine.deployment("r1")))
    machine.deploy("r2")
    machine.wait_ready("r2")
    listed = wait_for(lambda: machine.mailbox.get(RELEASES), "a list")
    wait_for(lambda: b'"r2"' in (machine.mailbox.get(RELEASES) or b""), "the new release in it")
    assert {entry.release for entry in decode_releases(machine.mailbox.get(RELEASES) or listed)} == {
        "r1",
        "r2",
        "newer",
    }


@pytest.mark.slow
def test_the_last_three_releases_are_kept(machine: Machine) -> None:
    machine.deploy("r1")
    machine.start()
    for number in range(1, 6):
        machine.deploy(f"r{number}")
        machine.wait_ready(f"r{number}")
    kept = sorted(path.name for path in (machine.state / "releases").iterdir())
    assert kept == ["r3", "r4", "r5"]
    current = Releases(machine.state).current()
    assert current is not None
    assert current.id == "r5"


def of_a_newer_version(deployment: Deployment) -> bytes:
    """Its deployment.json with fields that this version does not know."""
    values = json.loads(encode(deployment))
    values["engine"]["shiny"] = values["shiny"] = True
    return json.dumps(values).encode()


def restart_agent(machine: Machine) -> None:
    old = machine.pid("agent")
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: machine.units.state("agent").pid not in (None, old), "a new agent")


def watch_statuses(machine: Machine, act: object, after: float) -> list[Status]:
    """Every status that is seen from `act` on until the new agent has written one."""
    assert callable(act)
    act()
    seen: list[Status] = []

    def look() -> bool:
        status = machine.status()
        if status is not None:
            assert status.phase in (*PHASES, "ready")
            seen.append(status)
        return status is not None and status.updated_at > after

    wait_for(look, "a word of the new agent")
    return seen
