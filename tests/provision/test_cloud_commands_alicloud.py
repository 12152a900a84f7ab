"""`deployctl` on Alibaba Cloud, from `up` to `down`: the real program and Automation API, a stand-in `pulumi`, an
account in a file with its APIs and object store, and a machine that the test plays. Not yet run on a real cloud."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from provision.errors import EndpointError, LeftoverError, NotFoundError
from provision.naming import TAG
from tests.lab.laptop import ALICLOUD_REGION, AlicloudLaptop, Done, alicloud_laptop
from tests.lab.scripted_machine import ScriptedMachine, free_port, playing

NO_STOCK = "Code: OperationDenied.NoStock Message: The resource is out of stock in the specified zone."
WHERE = ("--cloud", "alicloud", "--region", ALICLOUD_REGION)


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AlicloudLaptop]:
    with alicloud_laptop(tmp_path_factory.mktemp("home")) as laptop:
        yield laptop


def plant_disk(laptop: AlicloudLaptop, name: str) -> str:
    """A disk with the deployment's tag that no program has made."""
    values = {"tags": {TAG: name}, "category": "cloud_essd", "size": 40}
    return laptop.cloud.plant("ecs/ecsDisk:EcsDisk", values).id


def assert_nothing_is_left(laptop: AlicloudLaptop, name: str) -> None:
    assert [item.id for item in laptop.cloud.find() if not item.type.startswith("oss/")] == []
    assert laptop.mailboxes(name) == []


# ---- one deployment from up to down ----


@dataclass(frozen=True)
class Journey:
    """The first `up`, whose first zone had no stock."""

    laptop: AlicloudLaptop
    up: Done


@pytest.fixture(scope="module")
def journey(laptop: AlicloudLaptop) -> Iterator[Journey]:
    laptop.refuse(NO_STOCK)
    with playing(ScriptedMachine(lambda: laptop.find_machine("bot"))):
        yield Journey(laptop, laptop.up("bot", "--port", str(free_port()), "--json"))


def test_up_on_alibaba_cloud_ends_with_an_endpoint_that_answers_with_its_key(journey: Journey) -> None:
    assert journey.up.returncode == 0, journey.up.stderr
    found = json.loads(journey.up.stdout)
    assert (found["life"], found["answer"], found["target"]) == ("ready", "Paris.", "alicloud")
    assert found["base_url"].startswith("https://127.88.0.")


def test_without_stock_the_next_zone_is_tried(journey: Journey) -> None:
    assert "OperationDenied.NoStock  next: cn-hangzhou-h" in journey.up.stderr
    (machine,) = journey.laptop.machines("bot")
    assert machine.values["availabilityZone"] == "cn-hangzhou-h"


def test_status_shows_the_machine_as_its_mailbox_does(journey: Journey) -> None:
    found = json.loads(journey.laptop.run("status", "bot", "--json").stdout)
    (machine,) = journey.laptop.machines("bot")
    assert (found["life"], found["phase"], found["instance_id"]) == ("ready", "ready", machine.id)


def test_where_the_bucket_does_not_answer_the_state_is_unknown_and_not_down(journey: Journey) -> None:
    """As in mainland China for new accounts."""
    seen = journey.laptop.but({"OSS_ENDPOINT": "http://127.0.0.1:1"}).run("status", "bot", "--json")
    assert seen.returncode == EndpointError.exit_code
    found = json.loads(seen.stdout)
    assert (found["life"], found["instance_type"]) == ("unknown", "ecs.gn7i-c16g1.4xlarge")
    assert found["hint"]


def test_an_orphan_that_cannot_be_deleted_is_listed_with_its_command_and_ends_with_3(journey: Journey) -> None:
    """It was planted before `down`, and the account may not delete disks."""
    disk = plant_disk(journey.laptop, "bot")
    journey.laptop.api.refusals["DeleteDisk"] = (403, "Forbidden.RAM")
    done = journey.laptop.run("down", "bot")
    del journey.laptop.api.refusals["DeleteDisk"]
    assert done.returncode == LeftoverError.exit_code
    assert "1 resource left" in done.stdout
    assert f"aliyun ecs DeleteDisk --RegionId {ALICLOUD_REGION} --DiskId {disk}" in done.stdout
    assert journey.laptop.machines("bot") == []


def test_down_again_deletes_the_orphan_and_proves_that_nothing_is_left(journey: Journey) -> None:
    """The last of the journey."""
    done = journey.laptop.run("down", "bot", *WHERE)
    assert done.returncode == 0, done.stderr
    assert "0 resources left, $0.00/h" in done.stdout
    assert_nothing_is_left(journey.laptop, "bot")
    assert journey.laptop.run("status", "bot").returncode == NotFoundError.exit_code


# ---- accidents ----


@pytest.mark.slow
def test_down_without_any_state_finds_everything_and_deletes_it_in_order(laptop: AlicloudLaptop) -> None:
    """The account refuses to delete what something else still needs."""
    assert laptop.up("lost", "--no-wait").returncode == 0
    (machine,) = laptop.machines("lost")
    shutil.rmtree(laptop.home / "state")
    lost = laptop.run("down", "lost", *WHERE)
    assert lost.returncode == 0, lost.stdout + lost.stderr
    assert "0 resources left, $0.00/h" in lost.stdout
    assert f"left over: instance {machine.id}" in lost.stderr
    assert_nothing_is_left(laptop, "lost")


@pytest.mark.slow
def test_a_question_that_the_account_may_not_ask_is_unknown_and_no_proof(laptop: AlicloudLaptop) -> None:
    laptop.api.refusals["DescribeSnapshots"] = (403, "Forbidden.RAM")
    done = laptop.run("down", "never-made", *WHERE)
    del laptop.api.refusals["DescribeSnapshots"]
    assert done.returncode == LeftoverError.exit_code
    assert "snapshot: not allowed: the credentials lack ecs:DescribeSnapshots" in done.stdout
