"""A journey on an account that may not use OSS from outside: the mailbox is a folder of the machine.

The object store refuses the owner's objects in a mailbox with OSS's own code, and everybody else nothing; the ECS API
runs commands in the guest. (The bucket of models stands for a hub: an account like this would use ModelScope.)
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
import yaml

from provision.naming import bucket_prefix
from provision.spec import parse
from provision.sweep.model import is_mailbox
from runtime.agent.uploads import EVERY_S
from runtime.vm import SPOOL_DIR
from tests.e2e.chained_journey import (
    NEIGHBOURS,
    AlicloudAccount,
    Chain,
    finish,
    follow_down,
    stack_outputs,
    wait_for_machine,
    wait_for_role,
)
from tests.e2e.cloud_journey import NAME, Journey, ask, site
from tests.lab.alicloud_account import alicloud_account
from tests.lab.laptop import Done, Laptop, laptop_env
from tests.lab.metadata_service import serve_metadata
from tests.lab.network import GUEST
from tests.lab.object_store import OWNER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """What one `deployctl up` has made, with no word about the mailbox."""
    folder = tmp_path_factory.mktemp("spool")
    with ExitStack() as stack:
        at = stack.enter_context(site("trixie", "alicloud", folder))
        at.store.faults.closed_to = (OWNER.access_key, bucket_prefix(NAME))
        with at.network.operator.network_entered():
            api = stack.enter_context(alicloud_account(folder / "alicloud.json", GUEST.removesuffix("10")))
        account, home = AlicloudAccount(at, api), folder / "home"
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in account.environment.items():
            patch.setenv(name, value)
        home.mkdir()
        laptop = Laptop(home, laptop_env(home, "alicloud_account", account.environment), ())
        values = {**at.values(), "allowed_cidrs": NEIGHBOURS, "runtime_wheel": str(at.wheel.path)}
        (home / "deploy.yaml").write_text(yaml.safe_dump(values))
        with at.network.operator.network_entered():
            started = laptop.start("up", "--yes", "--json")
        machine = wait_for_machine(account, started)
        instance = at.instance(machine.user_data, machine.id)
        instance = replace(instance, zone=machine.zone, private_ip=machine.private_ip, credentials=None)
        metadata = stack.enter_context(serve_metadata(instance, at.network.operator))
        at.guest.boot()
        api.assistant.machines[machine.id] = lambda argv: at.guest.command(*argv)
        metadata.attach(wait_for_role(account, at))
        said, told = finish(started, at)
        exports = stack_outputs(at, laptop)
        secrets = {**at.secrets(), "API key": exports["api_key"]}
        made = Journey(
            at.provider,
            at.suite,
            parse({**values, "mailbox": "cloud_assistant"}),
            at.network,
            at.guest,
            metadata,
            at.store,
            at.index,
            at.wheel,
            secrets,
            exports,
        )
        yield Chain(made, laptop, account, Done(started.args, started.returncode, said, told))


def test_up_goes_over_to_the_machines_spool_by_itself_and_ends_with_an_endpoint_that_answers(deployed: Chain) -> None:
    assert deployed.up.returncode == 0, deployed.up.stderr
    assert "this account may not use OSS from outside: mailbox cloud_assistant" in deployed.up.stderr
    found = json.loads(deployed.up.stdout)
    assert found["answer"]
    assert {check["answer"] for check in found["checks"]} <= {"yes", "unknown"}
    assert ask(deployed.journey)


def test_no_bucket_is_left_and_the_spool_is_for_root_alone(deployed: Chain) -> None:
    journey = deployed.journey
    assert not [name for name in journey.store.buckets if is_mailbox(NAME, name)]
    assert journey.guest.run("stat", "-c", "%a %U", str(SPOOL_DIR)) == "700 root\n"
    assert journey.guest.run("find", str(SPOOL_DIR), "-perm", "/077", "-type", "f") == ""


def test_status_and_logs_come_through_cloud_assistant(deployed: Chain) -> None:
    seen = json.loads(deployed.run("status", NAME, "--json").stdout)
    assert (seen["life"], seen["phase"], seen["error"]) == ("ready", "ready", None)
    deadline = time.monotonic() + 2 * EVERY_S
    while "is ready" not in (said := deployed.run("logs", NAME, "--agent").stdout):
        assert time.monotonic() < deadline, said


def test_a_redeploy_reaches_the_machine(deployed: Chain) -> None:
    before = deployed.journey.exports["release"]
    done = deployed.run("redeploy", NAME, "--max-model-len", "256", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["life"], seen["phase"]) == ("ready", "ready")
    assert seen["release"] == seen["wanted_release"] != before
    assert ask(deployed.journey)


def test_prune_deletes_in_the_spool_what_the_machine_has_dropped(deployed: Chain) -> None:
    guest, old = deployed.journey.guest, (f"{SPOOL_DIR}/release/dropped", f"{SPOOL_DIR}/history")
    guest.write(f"{old[0]}/deployment.json", "{}")
    guest.write(f"{old[1]}/dropped.json", '{"spec": {}}')
    done = deployed.run("releases", "prune", NAME, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["forgotten"], len(found["kept"])) == (["dropped"], 2)
    assert not guest.succeeds("test", "-e", old[0])
    assert "dropped.json" not in guest.run("ls", old[1])
    assert ask(deployed.journey)


def test_the_mailbox_of_a_machine_that_runs_cannot_be_another_one(deployed: Chain) -> None:
    done = deployed.run("up", NAME, "--mailbox", "bucket", "--yes")
    assert done.returncode == 2
    assert "mailbox cannot change while there is a machine of lab" in done.stderr


def test_down_leaves_nothing(deployed: Chain) -> None:
    done = follow_down(deployed, "--yes")
    assert done.returncode == 0, done.stderr
    assert "0 resources left, $0.00/h" in done.stdout + done.stderr
