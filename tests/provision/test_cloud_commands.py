"""`deployctl` on a cloud, command by command: the real program and Automation API, a stand-in `pulumi`, AWS in moto,
and a machine that is played by the test. Not yet run on a real cloud."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from provision.errors import EndpointError, NotFoundError, PlanError, RolledBackError, StoppedError
from provision.naming import WEIGHTS_TAG
from tests.lab import pulumi_accounts, pulumi_cli
from tests.lab.aws_stack import KEYS
from tests.lab.scripted_machine import ScriptedMachine, free_port, playing
from tests.lab.small_wheel import make_small_wheel

ROOT = Path(__file__).resolve().parents[2]
REGION = pulumi_accounts.REGION
MODEL = "Qwen/Qwen2.5-7B-Instruct"
NO_STOCK = "creating EC2 Instance: api error InsufficientInstanceCapacity: We have no g5.xlarge capacity in the zone"


@dataclass(frozen=True)
class Laptop:
    """A user's account with `deployctl`: its home, its environment, the cloud account."""

    home: Path
    env: dict[str, str]
    ec2: Any
    s3: Any
    words: list[str] = field(default_factory=list)

    def run(self, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*words), env=self.env, cwd=self.home, capture_output=True, text=True, timeout=timeout, check=False
        )

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-W", "ignore", "-m", "provision.cli", *words]

    def up(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("up", name, *self.words, "--yes", *words)

    def refuse(self, *texts: str) -> None:
        (self.home / "refusals").write_text("".join(f"{text}\n" for text in texts))

    def machines(self, name: str) -> list[dict[str, Any]]:
        alive = {"Name": "instance-state-name", "Values": ["pending", "running", "stopped"]}
        found = self.ec2.describe_instances(Filters=[alive, {"Name": "tag:deployctl", "Values": [name]}])
        return [instance for item in found["Reservations"] for instance in item["Instances"]]


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def laptop(moto: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    home = tmp_path_factory.mktemp("home")
    command = pulumi_cli.install(home / "bin")
    dropped = ("PULUMI_BACKEND_URL", "PULUMI_ACCESS_TOKEN", "PULUMI_HOME", "CI", "HF_TOKEN", "AWS_PROFILE")
    env = {name: value for name, value in os.environ.items() if name not in dropped}
    env |= {
        **KEYS,
        "AWS_ENDPOINT_URL": moto,
        "AWS_ENDPOINT_URL_S3": moto,
        "AWS_DEFAULT_REGION": REGION,
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "DEPLOYCTL_PROJECTS": str(home / "state/deployctl/.pulumi"),  # not the checkout
        "XDG_CACHE_HOME": str(home / "cache"),
        "PATH": f"{command.parent}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
        pulumi_cli.PROVIDERS: "tests.lab.pulumi_accounts:aws_account",
        pulumi_accounts.REFUSALS: str(home / "refusals"),
        pulumi_accounts.HOLD: str(home / "hold"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        ec2, s3 = (boto3.client(name, region_name=REGION, endpoint_url=moto) for name in ("ec2", "s3"))
        words = ["--cloud", "aws", "--region", REGION, "--instance-type", "g5.xlarge", "--model", MODEL]
        words += ["--allowed-cidrs", "127.0.0.0/8", "--runtime-wheel", str(make_small_wheel(home))]
        yield Laptop(home, env, ec2, s3, words)


# ---- one deployment from up to down ----


@dataclass(frozen=True)
class Journey:
    """The first `up`, whose first zone had no capacity."""

    laptop: Laptop
    machine: ScriptedMachine
    port: int
    up: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def journey(laptop: Laptop) -> Iterator[Journey]:
    port = free_port()
    laptop.refuse(NO_STOCK)
    with playing(ScriptedMachine(laptop.ec2, laptop.s3, REGION, "chat")) as machine:
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
        f"{REGION}a  g5.xlarge  InsufficientInstanceCapacity  next: {REGION}b g5.xlarge",
    ]
    (machine,) = journey.laptop.machines("chat")
    assert machine["Placement"]["AvailabilityZone"] == f"{REGION}b"


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
    bucket = next(
        item["Name"] for item in journey.laptop.s3.list_buckets()["Buckets"] if "chat-mailbox" in item["Name"]
    )
    words = ["--cloud", "aws", "--region", REGION, "--bucket", bucket, "--base-url", found["base_url"]]
    done = journey.laptop.run("wait", *words, "--release", found["release"], "--name", "chat")
    assert answer(done) == {"state": "ready", "certificate": found["certificate"], "release": found["release"]}


@pytest.mark.slow
def test_a_plain_pulumi_up_waits_with_the_same_command_and_exports_what_it_found(journey: Journey) -> None:
    script = (
        f'eval "$({shlex.join(journey.laptop.argv("config", "pulumi"))})"\n'
        "pulumi config set deployctl:wait true --stack chat &&\n"
        "pulumi up --yes --skip-preview --stack chat && pulumi stack output --json --stack chat"
    )
    done = subprocess.run(
        ["sh", "-c", script],
        env=journey.laptop.env,
        cwd=journey.laptop.home,
        capture_output=True,
        text=True,
        check=False,
    )
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
    assert not [item for item in journey.laptop.s3.list_buckets()["Buckets"] if "chat-mailbox" in item["Name"]]
    gone = journey.laptop.run("status", "chat")
    assert gone.returncode == NotFoundError.exit_code


# ---- accidents ----


@pytest.mark.slow
def test_a_preview_that_the_account_refuses_is_a_plan_error_and_leaves_no_stack(laptop: Laptop) -> None:
    words = [*laptop.words, "--zones", f"{REGION}a", "--image", "ami-0123456789abcdef0"]
    done = laptop.run("preview", "wrong", *words)
    assert done.returncode == PlanError.exit_code, done.stderr
    assert "wrong cannot be deployed like this" in done.stderr
    assert laptop.run("status", "wrong").returncode == NotFoundError.exit_code


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


def test_ctrl_c_then_up_again_then_down_without_any_state(laptop: Laptop) -> None:
    """One deployment, because each step is about what the one before has left."""
    hold = laptop.home / "hold"
    hold.touch()
    words = ["up", "code", *laptop.words, "--no-wait", "--yes"]
    first = subprocess.Popen(
        laptop.argv(*words), env=laptop.env, cwd=laptop.home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(laptop.home / "hold.begun")
    first.send_signal(signal.SIGINT)
    hold.unlink()
    said = first.communicate(timeout=120)[1]
    assert first.returncode == StoppedError.exit_code, said
    assert "next: deployctl up --name code" in said
    (machine,) = laptop.machines("code")
    assert "an `up` was cut off" in laptop.run("status", "code").stdout

    again = laptop.run(*words)
    assert again.returncode == 0, again.stderr
    assert [item["InstanceId"] for item in laptop.machines("code")] == [machine["InstanceId"]]

    shutil.rmtree(laptop.home / "state")
    lost = laptop.run("down", "code", "--cloud", "aws", "--region", REGION)
    assert "0 resources left, $0.00/h" in lost.stdout, lost.stdout + lost.stderr
    assert lost.returncode == 0
    assert f"left over: instance {machine['InstanceId']}" in lost.stderr.lower()
    assert laptop.machines("code") == []


def volumes(laptop: Laptop, name: str) -> list[str]:
    """Disks of weights, by id."""
    found = laptop.ec2.describe_volumes(Filters=[{"Name": f"tag:{WEIGHTS_TAG}", "Values": [name]}])["Volumes"]
    return [volume["VolumeId"] for volume in found]


@pytest.mark.slow
def test_a_disk_of_weights_outlives_its_machine_where_asked_and_goes_with_the_next_down(laptop: Laptop) -> None:
    words = ["--weights-disk-gib", "60", "--no-wait"]
    assert laptop.up("disk", *words).returncode == 0
    (disk,) = volumes(laptop, "disk")
    kept = laptop.run("down", "disk", "--keep-disk")
    assert kept.returncode == 0, kept.stderr
    assert f"kept as asked: weights disk {disk}" in kept.stdout.replace("volume", "weights disk")
    assert laptop.machines("disk") == []
    assert volumes(laptop, "disk") == [disk]

    again = laptop.up("disk", *words)
    assert again.returncode == 0, again.stderr
    (machine,) = laptop.machines("disk")
    attached = {item["Ebs"]["VolumeId"] for item in machine["BlockDeviceMappings"]}
    assert disk in attached
    gone = laptop.run("down", "disk")
    assert gone.returncode == 0, gone.stderr
    assert volumes(laptop, "disk") == []
    assert laptop.run("status", "disk").returncode == NotFoundError.exit_code


def test_alibaba_cloud_goes_the_same_way_and_what_its_bucket_hides_is_unknown(laptop: Laptop) -> None:
    """The account is in memory, and its object store does not answer here, as in mainland China for new accounts."""
    laptop.refuse("Code: OperationDenied.NoStock Message: The resource is out of stock in the specified zone.")
    more = {pulumi_cli.PROVIDERS: "tests.lab.pulumi_accounts:alicloud_account", "OSS_ENDPOINT": "http://127.0.0.1:1"}
    keys = {"OSS_ACCESS_KEY_ID": "x", "OSS_ACCESS_KEY_SECRET": "y"}
    there = replace(
        laptop, env={**laptop.env, **more, **keys, pulumi_accounts.ALICLOUD: str(laptop.home / "alicloud.json")}
    )
    words = ["--cloud", "alicloud", "--instance-type", "ecs.gn7i-c16g1.4xlarge", "--model", f"modelscope:{MODEL}"]
    words += ["--allowed-cidrs", "127.0.0.0/8", "--runtime-wheel", str(make_small_wheel(laptop.home))]
    done = there.run("up", "bot", *words, "--no-wait", "--yes")
    assert done.returncode == 0, done.stderr
    assert "OperationDenied.NoStock  next: cn-hangzhou-" in done.stderr
    seen = there.run("status", "bot", "--json")
    assert seen.returncode == EndpointError.exit_code
    found = json.loads(seen.stdout)
    assert (found["life"], found["target"], found["instance_type"]) == ("unknown", "alicloud", "ecs.gn7i-c16g1.4xlarge")
    assert found["hint"]
