"""Every day on a cloud, in one go: the program's own resources in the lab's account, a machine that really boots, and
the commands of a person who changes it, breaks it, goes back, rotates its key, lets it fall asleep and wakes it.

Each step finds what the one before has left. The engine is scripted. The lab does what EC2 and ECS do: it switches the
guest off and on as the account says.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.wheel import Wheel
from runtime.agent.idle import KEPT
from runtime.handover import ACTIVITY
from runtime.vm import RUN_DIR, STATE_DIR
from tests.e2e.chained_journey import Chain, chain, follow_down
from tests.e2e.cloud_journey import NAME, ask, scripted_wheel
from tests.e2e.load import Load
from tests.lab.packages import with_replaced

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BACK = 16  # exit code of a redeploy that was taken back
DROP_IN = "/etc/systemd/system/deployctl-agent.service.d/lab.conf"
PATIENCE_S = 120.0
# Where a machine asks its cloud to stop it: the agent's variable, and the user's that has the same address.
POWER = {"aws": ("AWS_ENDPOINT_URL_EC2", "AWS_ENDPOINT_URL"), "alicloud": ("ECS_ENDPOINT", "ECS_ENDPOINT")}


@pytest.fixture(scope="module", params=[("bookworm", "aws"), ("trixie", "alicloud")], ids="-".join)
def deployed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    suite, provider = request.param
    with chain(suite, provider, tmp_path_factory.mktemp("everyday")) as made:
        assert made.up.returncode == 0, made.up.stderr
        yield made


def load(made: Chain) -> Load:
    access = made.journey.access()
    return Load(
        access.base_url,
        access.api_key,
        access.model,
        clients=8,
        tokens=4,
        certificate=access.certificate,
        place=made.journey.network.operator.network_entered,
    )


def run(made: Chain, *words: str, code: int = 0) -> str:
    done = made.run(*words)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}\n{made.journey.report()}"
    return str(done.stdout)


def release(made: Chain) -> str:
    return str(json.loads(run(made, "status", NAME, "--json"))["release"])


def sleep_until_off(made: Chain) -> None:
    """Lets the last request be ten minutes old until the account has no running machine any more; then the guest is
    switched off. Again and again, because the server tells its last request a few seconds late."""
    files = (f"{RUN_DIR}/{ACTIVITY}", f"{STATE_DIR}/{KEPT}")
    deadline = time.monotonic() + PATIENCE_S
    while made.account.machine() is not None:
        assert time.monotonic() < deadline, made.journey.report()
        made.journey.guest.run("touch", "-d", "10 minutes ago", *files)
        time.sleep(1.0)
    made.journey.guest.cut()


def test_a_changed_parameter_and_a_new_version_refuse_and_reset_none_of_8_clients(
    deployed: Chain, tmp_path: Path
) -> None:
    wheel: Wheel = scripted_wheel(tmp_path, "of another day")
    with load(deployed) as asked:
        words = ("--max-model-len", "256", "--runtime-wheel", str(wheel.path))
        changed = json.loads(run(deployed, "redeploy", NAME, *words, "--yes", "--json"))
        asked.go_on_until(time.monotonic() + 1.0)
    assert asked.outcomes.wrong == {}
    assert asked.outcomes.counts["fine"] > 8
    deployed.journey.exports["release"] = changed["release"]


def test_a_redeploy_that_fails_puts_the_release_before_back(deployed: Chain, tmp_path: Path) -> None:
    before = release(deployed)
    broken = with_replaced(
        scripted_wheel(tmp_path), {"runtime/server/app.py": b"import nothing_of_this_name"}, tmp_path / "broken"
    )
    run(deployed, "redeploy", NAME, "--runtime-wheel", str(broken.path), "--yes", code=BACK)
    assert release(deployed) == before
    assert ask(deployed.journey)


def test_a_rollback_brings_the_first_release_back(deployed: Chain) -> None:
    changed = release(deployed)
    with load(deployed) as asked:
        run(deployed, "rollback", "--name", NAME, "--yes")
    assert asked.outcomes.wrong == {}
    assert release(deployed) != changed


def test_a_key_is_rotated_with_a_grace_and_nobody_is_refused(deployed: Chain) -> None:
    with load(deployed) as asked:
        run(deployed, "keys", "rotate", "default", NAME, "--grace", "10m")
        asked.go_on_until(time.monotonic() + 8.0)  # the machine reads its mailbox every few seconds
    assert asked.outcomes.wrong == {}


def test_without_requests_the_machine_stops_itself_in_the_account(deployed: Chain) -> None:
    guest, environment = deployed.journey.guest, deployed.account.environment
    of_machine, of_user = POWER[deployed.journey.provider]
    guest.run("mkdir", "-p", str(Path(DROP_IN).parent))
    guest.write(DROP_IN, f"[Service]\nEnvironment={of_machine}={environment[of_user]}\n")
    guest.run("systemctl", "daemon-reload")
    run(deployed, "redeploy", NAME, "--idle-stop", "5m", "--yes")
    guest.run("systemctl", "restart", "deployctl-agent")
    sleep_until_off(deployed)
    seen = json.loads(run(deployed, "status", NAME, "--json", code=10))
    assert seen["life"] == "stopped"
    assert seen["error"] == "no request for 5 min (idle_stop)"


def test_wake_boots_the_same_machine_and_it_answers_and_so_does_the_next_one(deployed: Chain) -> None:
    """The second time Pulumi's state already has a machine that was woken, and that runs."""
    wake(deployed)
    sleep_until_off(deployed)
    wake(deployed)


def wake(deployed: Chain) -> None:
    started = deployed.start("wake", NAME, "--yes", "--json")
    deadline = time.monotonic() + PATIENCE_S
    while deployed.account.machine() is None:
        assert started.poll() is None, "".join(started.communicate())
        assert time.monotonic() < deadline
        time.sleep(0.2)
    deployed.journey.guest.boot()
    said, told = started.communicate(timeout=300)
    assert started.returncode == 0, told
    found = json.loads(said)
    assert (found["life"], found["instance_id"]) == ("ready", deployed.journey.metadata.instance.instance_id)


def test_down_leaves_nothing(deployed: Chain) -> None:
    done = follow_down(deployed)
    assert done.returncode == 0, done.stderr
    assert "0 resources left, $0.00/h" in done.stdout
