"""One deployment from `deployctl up` to `deployctl down`, with a machine that really boots.

deployctl up ─► Automation API ─► stand-in pulumi ─► the program ─► account: moto, or Alibaba Cloud in a file
     ▲                                                    │            │ a machine: user-data, id, role
     │ phases, certificate                                ▼            ▼
     └─────────────────────────────── object store: mailbox, models ◄─► guest

All of it is in the operator's network. The lab does what a cloud does: it starts a guest with exactly the user-data of
the machine that was made, and switches it off once that machine is gone.
"""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import boto3
import pytest
import yaml

from provision.naming import TAG
from provision.render import hub_object
from provision.spec import parse
from provision.sweep.model import is_mailbox
from runtime.mailbox import HUB_SECRET
from runtime.vm import Provider
from tests.e2e.cloud_journey import NAME, REGION, Journey, Site, site
from tests.lab import pulumi_accounts
from tests.lab.alicloud_account import AccountApi, alicloud_account, read_account
from tests.lab.aws_stack import KEYS
from tests.lab.laptop import Done, Laptop, laptop_env
from tests.lab.metadata_service import RoleCredentials, serve_metadata
from tests.lab.moto_server import serve_moto
from tests.lab.network import GUEST, OPERATOR
from tests.lab.rootfs import Suite

MADE_S = 120.0  # until the account has a machine, or has none any more
ENDS_S = 300.0
NEIGHBOURS = "203.0.113.0/24"  # the operator's network


@dataclass(frozen=True, slots=True)
class Machine:
    """One that the account says it runs. `role`: the name of the role that it has now."""

    id: str
    zone: str
    image: str
    private_ip: str
    user_data: str
    role: str | None


class CloudAccount(Protocol):
    """`environment`: what a user of it must set."""

    environment: dict[str, str]

    def machine(self) -> Machine | None:
        """The deployment's, while it runs."""
        ...


class AwsAccount:
    """moto's, in the operator's network; S3 is the object store."""

    def __init__(self, at: Site, url: str) -> None:
        self.environment = {**KEYS, **at.environment, "AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": REGION["aws"]}
        self._network = at.network
        self._ec2: Any = boto3.client("ec2", region_name=REGION["aws"], endpoint_url=url)

    def machine(self) -> Machine | None:
        wanted = [{"Name": f"tag:{TAG}", "Values": [NAME]}, {"Name": "instance-state-name", "Values": ["running"]}]
        with self._network.operator.network_entered():
            found = self._ec2.describe_instances(Filters=wanted)["Reservations"]
            if not found:
                return None
            made = found[0]["Instances"][0]
            id = made["InstanceId"]
            data = self._ec2.describe_instance_attribute(InstanceId=id, Attribute="userData")["UserData"]["Value"]
        role = made.get("IamInstanceProfile", {}).get("Arn", "").rpartition("/")[2] or None
        zone = made["Placement"]["AvailabilityZone"]
        return Machine(id, zone, made["ImageId"], made["PrivateIpAddress"], base64.b64decode(data).decode(), role)


class AlicloudAccount:
    """The account in a file; its APIs answer in the operator's network."""

    def __init__(self, at: Site, api: AccountApi) -> None:
        self._api = api
        files = {pulumi_accounts.ALICLOUD: str(api.path), pulumi_accounts.OSS: at.store.url("").rstrip("/")}
        self.environment = {**api.environment, **files, **at.environment}

    def machine(self) -> Machine | None:
        cloud = read_account(self._api.path)
        found = cloud.find("/instance:Instance", {TAG: NAME})
        if not found:
            return None
        (made,) = found
        if made.values["status"] != "Running":
            return None
        roles = [str(item.values["ramRoleName"]) for item in cloud.find("RamRoleAttachment")]
        values = made.values
        user_data = base64.b64decode(values["userData"]).decode()
        role = roles[0] if roles else None
        return Machine(made.id, values["availabilityZone"], values["imageId"], values["privateIp"], user_data, role)


@dataclass(slots=True)
class Chain:
    """A deployment that `deployctl up` has made and waited for. `journey`: what its machine is and shows."""

    journey: Journey
    laptop: Laptop
    account: CloudAccount
    up: Done

    def run(self, *words: str) -> Done:
        """A deployctl command of a user in the operator's network."""
        with self.journey.network.operator.network_entered():
            return self.laptop.run(*words)

    def start(self, *words: str) -> subprocess.Popen[str]:
        with self.journey.network.operator.network_entered():
            return self.laptop.start(*words)


@contextmanager
def chain(suite: Suite, provider: Provider, folder: Path) -> Iterator[Chain]:
    """Ends what it has begun, whatever `down` has left."""
    with ExitStack() as stack:
        at = stack.enter_context(site(suite, provider, folder))
        account = open_account(at, folder, stack)
        home = folder / "home"
        home.mkdir()
        laptop = Laptop(home, laptop_env(home, f"{provider}_account", account.environment), ())
        secret = at.secrets()
        values = {**at.values(), "allowed_cidrs": NEIGHBOURS, "runtime_wheel": str(at.wheel.path)}
        (home / "deploy.yaml").write_text(yaml.safe_dump(values))
        with at.network.operator.network_entered():
            started = laptop.start("up", "--yes", "--json")
        machine = wait_for_machine(account, started)
        # A token is for models of a hub; here it lies in the mailbox only to be looked for elsewhere.
        bucket = wait_for_mailbox(at)
        at.store.put(bucket, HUB_SECRET, hub_object(secret["hub token"]))
        instance = replace(
            at.instance(machine.user_data, machine.id),
            zone=machine.zone,
            image=machine.image,
            private_ip=machine.private_ip,
            credentials=None,
        )
        metadata = stack.enter_context(serve_metadata(instance, at.network.operator))
        at.guest.boot()
        metadata.attach(wait_for_role(account, at))
        said, told = finish(started, at)
        assert started.returncode == 0, "\n".join([said, told, at.guest.journal("-n", "100")])
        exports = stack_outputs(at, laptop)
        secret["API key"] = exports["api_key"]
        made = Journey(
            provider,
            suite,
            parse(values),
            at.network,
            at.guest,
            metadata,
            at.store,
            at.index,
            at.wheel,
            secret,
            exports,
        )
        yield Chain(made, laptop, account, Done(started.args, started.returncode, said, told))


def open_account(at: Site, folder: Path, stack: ExitStack) -> CloudAccount:
    """Public addresses of both are the guest's."""
    if at.provider == "aws":
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("moto.ec2.models.elastic_ip_addresses.random_ip", lambda: GUEST)
        with at.network.operator.network_entered():
            url = stack.enter_context(serve_moto(OPERATOR))
        return AwsAccount(at, url)
    with at.network.operator.network_entered():
        api = stack.enter_context(alicloud_account(folder / "alicloud.json", GUEST.removesuffix("10"), OPERATOR))
    return AlicloudAccount(at, api)


def wait_for_machine(account: CloudAccount, started: subprocess.Popen[str]) -> Machine:
    deadline = time.monotonic() + MADE_S
    while (machine := account.machine()) is None:
        assert started.poll() is None, "".join(started.communicate())
        assert time.monotonic() < deadline, "the account has no machine"
        time.sleep(0.1)
    return machine


def wait_for_mailbox(at: Site) -> str:
    """The name of its bucket, which is made beside the machine."""
    deadline = time.monotonic() + MADE_S
    while (name := next((one for one in at.store.buckets if is_mailbox(NAME, one)), None)) is None:
        assert time.monotonic() < deadline, "the store has no mailbox"
        time.sleep(0.1)
    return name


def wait_for_role(account: CloudAccount, at: Site) -> RoleCredentials:
    """The machine's role, with its name in the account and its rights in the object store."""
    deadline = time.monotonic() + MADE_S
    while (machine := account.machine()) is None or machine.role is None:
        assert time.monotonic() < deadline, "the machine has no role"
        time.sleep(0.1)
    return RoleCredentials(machine.role, at.role.access_key, at.role.secret, at.role.token or "")


def finish(started: subprocess.Popen[str], at: Site) -> tuple[str, str]:
    """What a command has said on stdout and stderr; meanwhile a guest that restarts itself is started again."""
    deadline = time.monotonic() + ENDS_S
    while True:
        try:
            return started.communicate(timeout=0.2)
        except subprocess.TimeoutExpired:
            at.guest.follow_reboot()
            if time.monotonic() > deadline:
                started.kill()
                raise AssertionError("\n".join([*started.communicate(), at.guest.journal("-n", "100")])) from None


def stack_outputs(at: Site, laptop: Laptop) -> dict[str, Any]:
    """As a plain `pulumi` shows them to who may see secrets."""
    with at.network.operator.network_entered():
        done = laptop.pulumi("stack", "output", "--json", "--show-secrets", "--stack", NAME)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def follow_down(chain: Chain, *words: str) -> Done:
    """`deployctl down`; the guest is switched off as soon as the account has no such machine any more."""
    started = chain.start("down", NAME, *words)
    deadline = time.monotonic() + MADE_S
    while chain.account.machine() is not None and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if chain.account.machine() is None:
        chain.journey.guest.cut()
    said, told = started.communicate(timeout=ENDS_S)
    return Done(started.args, started.returncode, said, told)
