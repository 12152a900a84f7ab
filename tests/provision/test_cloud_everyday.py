"""What is done every day with a deployment on AWS in moto: keys, clients, cost, doctor, two operators. Not yet run on a
real cloud."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from provision.client import pinned_context
from provision.errors import FailedError, LockedError, UsageError
from provision.history import FOLDER, Past
from provision.lease import Holder
from runtime.deployment import decode_keys, encode
from runtime.mailbox import ASKED, CURRENT, KEYS, LOCK, decode_asked, decode_current
from tests.lab.laptop import AwsLaptop, Done, aws_laptop
from tests.lab.scripted_machine import ScriptedMachine, free_port, playing
from tests.lab.small_wheel import make_small_wheel

pytestmark = pytest.mark.slow
NAME = "chat"


@dataclass(frozen=True)
class Everyday:
    """A deployment that serves."""

    laptop: AwsLaptop
    base_url: str
    certificate: str
    own_key: str

    def json(self, *words: str) -> Any:
        done = self.laptop.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def status_with(self, key: str) -> int:
        with httpx.Client(verify=pinned_context(self.certificate), trust_env=False) as client:
            return client.get(f"{self.base_url}/models", headers={"Authorization": f"Bearer {key}"}).status_code

    def refused_within(self, key: str, seconds: float = 30.0) -> bool:
        """The machine looks into its mailbox every moment."""
        deadline = time.monotonic() + seconds
        while self.status_with(key) != 401:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    @property
    def bucket(self) -> str:
        return self.laptop.mailboxes(NAME)[0]

    def object(self, key: str) -> bytes:
        data: bytes = self.laptop.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return data


@pytest.fixture(scope="module")
def everyday(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Everyday]:
    with (
        aws_laptop(tmp_path_factory.mktemp("home")) as laptop,
        playing(ScriptedMachine(lambda: laptop.find_machine(NAME))),
    ):
        done = laptop.up(NAME, "--port", str(free_port()), "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        yield Everyday(laptop, found["base_url"], found["certificate"], found["api_key"])
        assert laptop.run("down", NAME).returncode == 0


def test_a_key_is_added_rotated_and_revoked_while_the_machine_serves(everyday: Everyday) -> None:
    added = everyday.json("keys", "add", "alice", "--rpm", "60")
    assert added["let_in"] is True
    alice = added["secret"]
    renewed = everyday.json("keys", "rotate", "alice", "--grace", "10m")["secret"]
    assert (everyday.status_with(alice), everyday.status_with(renewed)) == (200, 200)
    shown = everyday.json("keys", "list")
    assert [(row["key"], row["rpm"], row["expires_at"] is None) for row in shown] == [
        ("default", None, True),
        ("alice", 60, True),
        ("alice", 60, False),
    ]
    refused = everyday.laptop.run("keys", "revoke", "alice")
    assert refused.returncode == UsageError.exit_code
    assert everyday.json("keys", "revoke", "alice", "--yes")["revoked"] == "alice"
    assert everyday.refused_within(alice)
    assert everyday.refused_within(renewed)
    assert everyday.status_with(everyday.own_key) == 200


def test_deployctls_own_key_is_rotated_and_deployctl_goes_on_with_the_new_one(everyday: Everyday) -> None:
    new = everyday.json("keys", "rotate", "--grace", "10m")["secret"]
    assert (everyday.status_with(new), everyday.status_with(everyday.own_key)) == (200, 200)
    assert everyday.json("endpoint", NAME)["api_key"] == new
    data = everyday.object(KEYS)
    assert new.encode() not in data
    assert len(decode_keys(data)) == 2
    order = decode_asked(everyday.object(ASKED))
    assert order.command.startswith("deployctl keys rotate")


def test_what_connect_prints_asks_the_endpoint_and_trusts_its_certificate(everyday: Everyday) -> None:
    program = everyday.laptop.run("connect", "curl", NAME).stdout
    key = everyday.json("endpoint", NAME)["api_key"]
    env = {**os.environ, "OPENAI_API_KEY": key}
    done = subprocess.run(["sh", "-c", program], env=env, capture_output=True, text=True, check=False)
    assert "Paris." in done.stdout, done.stderr
    shown = everyday.laptop.run("open", NAME, "--print")
    assert shown.stdout == everyday.base_url.removesuffix("v1") + "\n"
    assert "SHA-256 fingerprint" in shown.stderr


def test_cost_names_every_line_and_a_budget_brings_the_end_forward(everyday: Everyday) -> None:
    before = everyday.json("cost", NAME)
    assert before["usd_per_hour"] == pytest.approx(sum(item["usd_per_hour"] for item in before["items"]))
    assert {"g5.xlarge", "public address"} <= {item["name"] for item in before["items"]}
    assert 0 < before["spent_usd"] < 1
    after = everyday.json("cost", NAME, "--budget", "2", "--yes")
    assert after["expires_at"] < before["expires_at"]
    assert after["spent_usd"] + after["usd_until_end"] <= 2.0
    same = everyday.laptop.run("cost", NAME, "--budget", "50", "--yes")
    assert "nothing changed" in same.stderr


def lock_of_another(everyday: Everyday) -> bytes:
    now = time.time()
    other = Holder("bob@babbage", "babbage", 7, "deployctl redeploy chat", now - 60, now, "b")
    return encode(other)


def test_two_operators_at_once_one_is_told_who_works(everyday: Everyday) -> None:
    everyday.laptop.s3.put_object(Bucket=everyday.bucket, Key=LOCK, Body=lock_of_another(everyday))
    for words in (("keys", "add", "carol"), ("redeploy", NAME, "--max-model-len", "4096", "--yes")):
        done: Done = everyday.laptop.run(*words)
        assert done.returncode == LockedError.exit_code, done.stderr
        assert "`deployctl redeploy chat` of bob@babbage, pid 7" in done.stderr
    everyday.laptop.s3.delete_object(Bucket=everyday.bucket, Key=LOCK)


def test_the_doctor_finds_what_the_mailbox_tells(everyday: Everyday) -> None:
    healthy = everyday.laptop.run("doctor", NAME, "--no-ssh")
    assert healthy.returncode == 0, healthy.stdout
    fell = b"2026-07-01T12:00:00.000Z NVRM: Xid (PCI:0000:00:1e): 79, GPU has fallen off the bus.\n"
    now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()).encode()
    everyday.laptop.s3.put_object(
        Bucket=everyday.bucket, Key="status/logs/kernel.log", Body=fell.replace(b"2026-07-01T12:00:00", now)
    )
    ill = everyday.laptop.run("doctor", NAME, "--no-ssh", "--json")
    assert ill.returncode == FailedError.exit_code
    assert json.loads(ill.stdout)["findings"][0]["rule"] == "gpu-fell-off-the-bus"


def served(everyday: Everyday) -> str | None:
    """SHA-256 of the wheel that the machine is to run."""
    return decode_current(everyday.object(CURRENT)).sha256


def test_a_rollback_finds_the_wheel_of_that_release_in_the_mailbox(everyday: Everyday, tmp_path: Path) -> None:
    first, before = everyday.json("status", NAME)["release"], served(everyday)
    newer = make_small_wheel(tmp_path, b"# newer")
    digest = hashlib.sha256(newer.read_bytes()).hexdigest()
    changed = everyday.json("redeploy", NAME, "--runtime-wheel", str(newer), "--yes")["release"]
    assert served(everyday) == digest
    newer.unlink()  # as on another laptop
    assert everyday.json("rollback", "--name", NAME, "--yes")["release"] == first
    assert served(everyday) == before
    assert everyday.json("rollback", changed, "--name", NAME, "--yes")["release"] == changed
    assert served(everyday) == digest


def test_prune_deletes_what_is_written_down_of_releases_that_the_machine_has_dropped(everyday: Everyday) -> None:
    kept = [entry["release"] for entry in everyday.json("releases", "list", NAME)]
    dropped = encode(Past(spec={}, wheel="deployctl-0.0.9-py3-none-any.whl", sha256="0" * 64))
    wheel = f"{FOLDER}{'0' * 64}/deployctl-0.0.9-py3-none-any.whl"
    for key, data in ((f"{FOLDER}dropped.json", dropped), (wheel, b"wheel")):
        everyday.laptop.s3.put_object(Bucket=everyday.bucket, Key=key, Body=data)
    assert everyday.json("releases", "prune", NAME) == {"forgotten": ["dropped"], "kept": kept}
    listed = everyday.laptop.s3.list_objects_v2(Bucket=everyday.bucket, Prefix=FOLDER)["Contents"]
    keys = {item["Key"] for item in listed}
    assert {f"{FOLDER}{release}.json" for release in kept} <= keys
    assert not keys & {wheel, f"{FOLDER}dropped.json"}
    assert everyday.json("status", NAME)["life"] == "ready"


def test_what_is_not_named_is_not_deleted_without_a_word(everyday: Everyday) -> None:
    done = everyday.laptop.run("down")
    assert done.returncode == UsageError.exit_code
    assert "next: deployctl down chat" in done.stderr
    assert everyday.laptop.machines(NAME)
