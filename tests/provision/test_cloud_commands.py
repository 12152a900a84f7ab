"""`deployctl` on a cloud, command by command: the real program and Automation API, a stand-in `pulumi`, AWS in moto,
and a machine that is played by the test. Not yet run on a real cloud."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from provision.errors import NotFoundError, NotRunningError, RolledBackError
from tests.lab.laptop import AWS_REGION, MODEL, AwsLaptop, aws_laptop
from tests.lab.scripted_machine import ScriptedMachine, free_port, playing

NO_STOCK = "creating EC2 Instance: api error InsufficientInstanceCapacity: We have no g5.xlarge capacity in the zone"


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsLaptop]:
    with aws_laptop(tmp_path_factory.mktemp("home")) as laptop:
        yield laptop


# ---- one deployment from up to down ----


@dataclass(frozen=True)
class Journey:
    """The first `up`, whose first zone had no capacity."""

    laptop: AwsLaptop
    machine: ScriptedMachine
    port: int
    up: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def journey(laptop: AwsLaptop) -> Iterator[Journey]:
    port = free_port()
    laptop.refuse(NO_STOCK)
    with playing(ScriptedMachine(lambda: laptop.find_machine("chat"))) as machine:
        yield Journey(laptop, machine, port, laptop.up("chat", "--port", str(port), "--json"))


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_up_ends_with_an_endpoint_that_answers_with_its_key(journey: Journey) -> None:
    found = answer(journey.up)
    assert (found["life"], found["answer"], found["target"]) == ("ready", "Paris.", "aws")
    assert found["base_url"].startswith("https://127.")
    assert found["api_key"].startswith("sk-")
    assert found["price_per_hour"] > 0
    assert found["expires_at"] > time.time() + 7 * 3600


def test_without_capacity_the_next_zone_is_tried_with_one_line_that_says_so(journey: Journey) -> None:
    lines = [line.strip() for line in journey.up.stderr.splitlines() if "InsufficientInstanceCapacity" in line]
    assert lines == [
        f"{AWS_REGION}a  g5.xlarge  InsufficientInstanceCapacity  next: {AWS_REGION}b g5.xlarge",
    ]
    (machine,) = journey.laptop.machines("chat")
    assert machine["Placement"]["AvailabilityZone"] == f"{AWS_REGION}b"


def test_the_reachability_proof_is_part_of_the_answer(journey: Journey) -> None:
    checks = {item["question"]: item["answer"] for item in answer(journey.up)["checks"]}
    assert checks.pop("closed to everybody else") == "unknown"
    assert set(checks.values()) == {"yes"}
    assert len(checks) == 5


def test_the_price_is_shown_before_anything_is_made(journey: Journey) -> None:
    said = journey.up.stderr
    assert said.index("until the TTL ends it") < said.index("create  aws Vpc")


def test_no_secret_is_written_to_the_users_disk_in_clear(journey: Journey) -> None:
    key = answer(journey.up)["api_key"].encode()
    state = journey.laptop.home / "state/deployctl/.pulumi"
    config = state / "project/Pulumi.chat.yaml"
    assert key not in config.read_bytes()
    assert (state / "passphrase").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_a_second_up_without_options_takes_it_up_and_changes_nothing(journey: Journey) -> None:
    done = journey.laptop.run("up", "chat", "--yes")
    assert done.returncode == 0, done.stderr
    assert "nothing changed" in done.stderr
    assert "  create  " not in done.stderr
    assert "curl --cacert" in done.stdout


@pytest.mark.slow
def test_preview_shows_a_change_and_leaves_the_config_alone(journey: Journey) -> None:
    config = journey.laptop.home / "state/deployctl/.pulumi/project/Pulumi.chat.yaml"
    before = config.read_bytes()
    words = [*journey.laptop.words, "--port", str(journey.port), "--max-model-len", "2048"]
    found = answer(journey.laptop.run("preview", "chat", *words, "--json"))
    assert not found["same"]
    assert "replace" not in found["changes"] or found["changes"]["replace"] < 4
    assert config.read_bytes() == before


def test_status_and_ps_show_machine_price_and_end(journey: Journey) -> None:
    shown = journey.laptop.run("status", "chat").stdout
    (machine,) = journey.laptop.machines("chat")
    for wanted in ("ready", machine["InstanceId"], "g5.xlarge", "$1.", "ends the machine in 7 h"):
        assert wanted in shown, shown
    (row,) = answer(journey.laptop.run("ps", "--json"))
    assert (row["name"], row["life"], row["target"]) == ("chat", "ready", "aws")


def test_endpoint_lines_make_other_programs_trust_the_endpoint_and_the_rest_of_the_world(journey: Journey) -> None:
    done = journey.laptop.run("endpoint", "chat", "--env")
    values = dict(word.partition("=")[::2] for word in shlex.split(done.stdout.replace("export ", "")))
    bundle = Path(values["SSL_CERT_FILE"]).read_text()
    assert bundle.count("BEGIN CERTIFICATE") > 50
    assert Path(values["NODE_EXTRA_CA_CERTS"]).read_text() in bundle
    program = (
        "import os, ssl, urllib.request as r\n"
        "q = r.Request(os.environ['OPENAI_BASE_URL'] + '/models',\n"
        "              headers={'Authorization': 'Bearer ' + os.environ['OPENAI_API_KEY']})\n"
        "print(r.urlopen(q).status)"
    )
    script = f"{done.stdout}\n{shlex.quote(sys.executable)} -c {shlex.quote(program)}"
    asked = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert asked.stdout == "200\n", asked.stderr


def test_logs_come_from_the_mailbox(journey: Journey) -> None:
    done = journey.laptop.run("logs", "chat", "--engine")
    assert "is loaded" in done.stdout


def test_the_wait_command_prints_one_json_object(journey: Journey) -> None:
    found = answer(journey.up)
    (bucket,) = journey.laptop.mailboxes("chat")
    words = ["--cloud", "aws", "--region", AWS_REGION, "--bucket", bucket, "--base-url", found["base_url"]]
    done = journey.laptop.run("wait", *words, "--release", found["release"], "--name", "chat")
    assert answer(done) == {"state": "ready", "certificate": found["certificate"], "release": found["release"]}


@pytest.mark.slow
def test_a_plain_pulumi_up_waits_with_the_same_command_and_exports_what_it_found(journey: Journey) -> None:
    laptop = journey.laptop
    assert laptop.pulumi("config", "set", "deployctl:wait", "true", "--stack", "chat").returncode == 0
    changed = laptop.pulumi("up", "--yes", "--skip-preview", "--stack", "chat")
    assert changed.returncode == 0, changed.stderr
    done = laptop.pulumi("stack", "output", "--json", "--stack", "chat")
    found = answer(done)
    before = answer(journey.up)
    assert (found["state"], found["certificate"]) == ("ready", before["certificate"])
    assert found["instance_id"] == before["instance_id"]
    assert found["api_key"] == "[secret]"


def test_redeploy_reaches_the_machine_through_its_mailbox_and_keeps_it(journey: Journey) -> None:
    before = answer(journey.up)
    done = journey.laptop.run("redeploy", "chat", "--max-model-len", "4096", "--yes", "--json")
    after = answer(done)
    assert "max_model_len: (default) → 4096" in done.stderr
    assert after["release"] != before["release"]
    assert (after["instance_id"], after["base_url"]) == (before["instance_id"], before["base_url"])


@pytest.mark.slow
def test_a_release_that_fails_is_taken_back_and_the_stack_asks_for_what_serves(journey: Journey) -> None:
    journey.machine.bad_lengths.add(8192)
    done = journey.laptop.run("redeploy", "chat", "--max-model-len", "8192", "--yes")
    assert done.returncode == RolledBackError.exit_code, done.stderr
    assert "it does not fit" in done.stderr
    config = (journey.laptop.home / "state/deployctl/.pulumi/project/Pulumi.chat.yaml").read_text()
    assert "max_model_len: '4096'" in config


@pytest.mark.slow
def test_rollback_makes_stack_and_machine_what_they_were(journey: Journey) -> None:
    first = answer(journey.up)["release"]
    listed = answer(journey.laptop.run("releases", "list", "chat", "--json"))
    assert [entry["state"] for entry in listed] == ["serving", "ready"]
    done = journey.laptop.run("rollback", "--name", "chat", "--yes", "--json")
    assert answer(done)["release"] == first
    assert "max_model_len: 4096 → (default)" in done.stderr
    config = (journey.laptop.home / "state/deployctl/.pulumi/project/Pulumi.chat.yaml").read_text()
    assert "max_model_len" not in config


@pytest.mark.slow
def test_extend_moves_the_end_of_the_same_machine(journey: Journey) -> None:
    before = answer(journey.up)["expires_at"]
    found = answer(journey.laptop.run("extend", "chat", "2h", "--json"))
    assert found["expires_at"] == before + 7200
    (machine,) = journey.laptop.machines("chat")
    assert machine["InstanceId"] == answer(journey.up)["instance_id"]


@pytest.mark.slow
def test_a_stop_says_what_still_bills_and_wake_brings_the_same_endpoint_back(journey: Journey) -> None:
    stopped = journey.laptop.run("stop", "chat", "--yes")
    assert stopped.returncode == 0, stopped.stderr
    assert "computing is not billed" in stopped.stdout
    assert "disk" in stopped.stdout
    assert "public address" in stopped.stdout
    (machine,) = journey.laptop.machines("chat")
    assert machine["State"]["Name"] == "stopped"
    status = journey.laptop.run("status", "chat")
    assert status.returncode == NotRunningError.exit_code
    assert "deployctl wake chat" in status.stdout

    woken = answer(journey.laptop.run("wake", "chat", "--yes", "--json"))
    assert (woken["life"], woken["answer"]) == ("ready", "Paris.")
    assert woken["base_url"] == answer(journey.up)["base_url"]
    (machine,) = journey.laptop.machines("chat")
    assert machine["State"]["Name"] == "running"


@pytest.mark.slow
def test_a_machine_that_stopped_itself_is_woken_too(journey: Journey) -> None:
    (machine,) = journey.laptop.machines("chat")
    journey.machine.fall_asleep()
    journey.laptop.ec2.stop_instances(InstanceIds=[machine["InstanceId"]])
    status = journey.laptop.run("status", "chat")
    assert "no request for 30 min" in status.stdout
    assert answer(journey.laptop.run("wake", "chat", "--yes", "--json"))["life"] == "ready"
    (machine,) = journey.laptop.machines("chat")
    assert machine["State"]["Name"] == "running"


def test_a_name_is_one_deployment_wherever_it_lives(journey: Journey) -> None:
    done = journey.laptop.run("up", "chat", "--model", "demo", "--yes")
    assert "chat is a deployment on aws already" in done.stderr
    moved = journey.laptop.run("up", "chat", "--cloud", "aws", "--region", "us-east-1", "--model", MODEL, "--yes",
                               "--instance-type", "g5.xlarge")  # fmt: skip
    assert "region cannot change while chat runs" in moved.stderr


def test_down_leaves_nothing_and_says_so(journey: Journey) -> None:
    """The last of the journey."""
    done = journey.laptop.run("down", "chat")
    assert done.returncode == 0, done.stderr
    assert "0 resources left, $0.00/h" in done.stdout
    assert journey.laptop.machines("chat") == []
    assert journey.laptop.mailboxes("chat") == []
    gone = journey.laptop.run("status", "chat")
    assert gone.returncode == NotFoundError.exit_code
