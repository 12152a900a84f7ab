"""A user's account with `deployctl` and a stand-in `pulumi`, for tests that go from command to command.

Commands run in processes of their own, which the nursery forks; `cold` starts a real interpreter.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import boto3
import pytest

from provision.naming import TAG
from provision.sweep.model import is_mailbox
from runtime.bucket import open_bucket
from runtime.mailbox import BucketMailbox
from tests.lab import alicloud_cloud, pulumi_accounts, pulumi_cli
from tests.lab.alicloud_account import AccountApi, FileCloud, alicloud_account, read_account
from tests.lab.alicloud_cloud import Thing
from tests.lab.aws_stack import KEYS
from tests.lab.moto_server import serve_moto
from tests.lab.nursery import ROOT, nursery
from tests.lab.object_store import OWNER, ObjectStore
from tests.lab.small_wheel import make_small_wheel

AWS_REGION = pulumi_accounts.REGION
ALICLOUD_REGION = alicloud_cloud.REGION
MODEL = "Qwen/Qwen2.5-7B-Instruct"
TIMEOUT_S = 180.0
DROPPED = (
    "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "CI", "HF_TOKEN", "OSS_ENDPOINT", "PULUMI_ACCESS_TOKEN", "PULUMI_BACKEND_URL",
    "PULUMI_CONFIG_PASSPHRASE", "PULUMI_HOME",
)  # fmt: skip
Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Laptop:
    """`words`: options of every `up`."""

    home: Path
    env: dict[str, str]
    words: tuple[str, ...]

    def run(self, *words: str, timeout: float = TIMEOUT_S) -> Done:
        """A deployctl command."""
        return self._run([*nursery().argv("deployctl"), *words], timeout)

    def up(self, name: str, *words: str) -> Done:
        return self.run("up", name, *self.words, "--yes", *words)

    def pulumi(self, *words: str) -> Done:
        """A pulumi command as a user types it, on the stacks of deployctl."""
        script = f'eval "$({shlex.join(self.cold("config", "pulumi"))})"\n{shlex.join(["pulumi", *words])}'
        return self._run(["sh", "-c", script], TIMEOUT_S)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A deployctl command that goes on."""
        return self._start([*nursery().argv("deployctl"), *words])

    def start_cold(self, *words: str) -> subprocess.Popen[str]:
        """The same in an interpreter of its own."""
        return self._start(self.cold(*words))

    def cold(self, *words: str) -> list[str]:
        """The command line of an interpreter of its own."""
        return [sys.executable, "-W", "ignore", "-m", "provision.cli", *words]

    def but(self, env: Mapping[str, str]) -> Self:
        """The same home with other variables too."""
        return replace(self, env={**self.env, **env})

    def refuse(self, *texts: str) -> None:
        """The next machines are refused with these errors, in order."""
        (self.home / "refusals").write_text("".join(f"{text}\n" for text in texts))

    def _run(self, argv: list[str], timeout: float) -> Done:
        return subprocess.run(
            argv, env=self.env, cwd=self.home, capture_output=True, text=True, timeout=timeout, check=False
        )

    def _start(self, argv: list[str]) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, env=self.env, cwd=self.home, stdout=pipe, stderr=pipe, text=True)


def laptop_env(home: Path, account: str, env: Mapping[str, str]) -> dict[str, str]:
    """`account`: the function of `pulumi_accounts` that makes the cloud's providers. `env`: keys, addresses, region."""
    command = pulumi_cli.install(home / "bin", nursery().argv("pulumi"))
    own = {
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "DEPLOYCTL_PROJECTS": str(home / "state/deployctl/.pulumi"),  # not the checkout
        "XDG_CACHE_HOME": str(home / "cache"),
        "PATH": f"{command.parent}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
        pulumi_cli.PROVIDERS: f"tests.lab.pulumi_accounts:{account}",
        pulumi_accounts.REFUSALS: str(home / "refusals"),
        pulumi_accounts.HOLD: str(home / "hold"),
    }
    kept = {name: value for name, value in os.environ.items() if name not in DROPPED}
    return {**kept, **own, **env}


@dataclass(frozen=True)
class AwsLaptop(Laptop):
    """With an account in moto."""

    ec2: Any
    s3: Any

    def machines(self, name: str) -> list[dict[str, Any]]:
        """Those of a deployment that are not terminated."""
        alive = {"Name": "instance-state-name", "Values": ["pending", "running", "stopped"]}
        found = self.ec2.describe_instances(Filters=[alive, {"Name": f"tag:{TAG}", "Values": [name]}])
        return [instance for item in found["Reservations"] for instance in item["Instances"]]

    def mailboxes(self, name: str) -> list[str]:
        every = [str(item["Name"]) for item in self.s3.list_buckets()["Buckets"]]
        return [bucket for bucket in every if is_mailbox(name, bucket)]

    def find_machine(self, name: str) -> tuple[str, BucketMailbox] | None:
        """For `ScriptedMachine`."""
        found = [item["InstanceId"] for item in self.machines(name) if item["State"]["Name"] == "running"]
        boxes = self.mailboxes(name) if found else []
        return (found[0], BucketMailbox(open_bucket("aws", AWS_REGION, boxes[0]))) if boxes else None


@contextmanager
def aws_laptop(home: Path) -> Iterator[AwsLaptop]:
    """In eu-west-1; this process has the account's keys too."""
    with serve_moto() as url, pytest.MonkeyPatch.context() as patch:
        own = {**KEYS, "AWS_ENDPOINT_URL": url, "AWS_ENDPOINT_URL_S3": url, "AWS_DEFAULT_REGION": AWS_REGION}
        env = laptop_env(home, "aws_account", own)
        words = ["--cloud", "aws", "--region", AWS_REGION, "--instance-type", "g5.xlarge", "--model", MODEL]
        words += ["--allowed-cidrs", "127.0.0.0/8", "--runtime-wheel", str(make_small_wheel(home))]
        for name, value in env.items():
            patch.setenv(name, value)
        ec2, s3 = (boto3.client(name, region_name=AWS_REGION, endpoint_url=url) for name in ("ec2", "s3"))
        yield AwsLaptop(home, env, tuple(words), ec2, s3)


@dataclass(frozen=True)
class AlicloudLaptop(Laptop):
    """With an account in a file, and its APIs and object store."""

    api: AccountApi
    store: ObjectStore

    @property
    def cloud(self) -> FileCloud:
        """The account as it is now."""
        return read_account(self.api.path)

    def machines(self, name: str) -> list[Thing]:
        return self.cloud.find("/instance:Instance", {TAG: name})

    def mailboxes(self, name: str) -> list[str]:
        return [bucket for bucket in self.store.buckets if is_mailbox(name, bucket)]

    def find_machine(self, name: str) -> tuple[str, BucketMailbox] | None:
        """For `ScriptedMachine`."""
        found, boxes = self.machines(name), self.mailboxes(name)
        bucket = open_bucket("alicloud", ALICLOUD_REGION, boxes[0]) if boxes else None
        return (found[0].id, BucketMailbox(bucket)) if found and bucket else None


@contextmanager
def alicloud_laptop(home: Path) -> Iterator[AlicloudLaptop]:
    """In cn-hangzhou; public addresses are this machine's own. This process has the account's keys too."""
    words = ["--cloud", "alicloud", "--instance-type", "ecs.gn7i-c16g1.4xlarge", "--model", f"modelscope:{MODEL}"]
    words += ["--allowed-cidrs", "127.0.0.0/8", "--runtime-wheel", str(make_small_wheel(home))]
    with (
        alicloud_account(home / "alicloud.json", "127.88.0.") as api,
        ObjectStore(ALICLOUD_REGION) as store,
        pytest.MonkeyPatch.context() as patch,
    ):
        url = store.url("").rstrip("/")
        files = {pulumi_accounts.ALICLOUD: str(api.path), pulumi_accounts.OSS: url}
        env = laptop_env(
            home, "alicloud_account", {**api.environment, **OWNER.environment(), **files, "OSS_ENDPOINT": url}
        )
        for name, value in env.items():
            patch.setenv(name, value)
        yield AlicloudLaptop(home, env, tuple(words), api, store)
