"""One deployment on a guest: what the Pulumi program makes, made here with the same parts of the project.

test (user's side: provision)                         operator's network
   ├─ object store: mailbox, models   ◄── signed by the instance's role ──┐
   ├─ metadata service                ◄────────────────────────────────── ┤ guest: user-data ► cloud-init ► stage 0
   ├─ package index (no internet)     ◄────────────────────────────────── ┤        ► agent ► server, engine
   └─ client, pinned to the certificate of status/identity.json ─────────►┘ 203.0.113.10
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

from provision.automation import CloudStack
from provision.client import Message, OpenAIClient
from provision.cloud import CloudTarget
from provision.model_source import model_spec_for
from provision.planning import make_plan, plan_deployment
from provision.render import deployment_for, hub_object, keys_object
from provision.rollout import config_values
from provision.spec import DeploymentSpec, parse
from provision.target import Access, Observation
from provision.user_data import render_user_data
from provision.wheel import Wheel, build_from_checkout
from runtime.bucket import ENDPOINT_VARIABLE
from runtime.deployment import encode
from runtime.mailbox import (
    CURRENT,
    HUB_SECRET,
    KEYS,
    LIFE,
    STATUS,
    Current,
    Life,
    Status,
    decode_status,
    release_key,
    wheel_key,
)
from runtime.sizing import Machine
from runtime.vm import METADATA_ADDRESS, RUN_DIR, Provider, Vm
from tests.lab.guest import Guest, make_guest, require_lab
from tests.lab.metadata_service import Instance, MetadataService, RoleCredentials, serve_metadata
from tests.lab.models import write_hollow_model
from tests.lab.network import GUEST, OPERATOR, Network, network
from tests.lab.object_store import OWNER, Credential, ObjectStore, vm_role
from tests.lab.packages import ROOT, Index, offered_wheels, serve_index, with_replaced
from tests.lab.rootfs import PYTHON, Suite

NAME = "lab"
REGION: dict[Provider, str] = {"aws": "eu-west-1", "alicloud": "cn-hangzhou"}
TYPE: dict[Provider, str] = {"aws": "g5.xlarge", "alicloud": "ecs.gn7i-c16g1.4xlarge"}
SCHEME: dict[Provider, str] = {"aws": "s3", "alicloud": "oss"}
BUCKET = f"deployctl-{NAME}-mailbox-0123abcd"
MODELS = "models-of-the-lab"
SILENCE_S = 180.0  # nothing new in the status for so long is a failure
# What the driver's own tool prints, and the end of Alibaba's installer: a driver that works after a restart only.
NVIDIA_SMI = '#!/bin/sh\n[ ! -e /run/restart-me ] && echo "580.95.05, NVIDIA of the lab"\n'
INSTALLER_PATH = "/opsx/ecs/linux/binary/script/auto_install_v4.0.sh"
INSTALLER = f"""touch /run/restart-me
cat > /usr/local/bin/nvidia-smi <<'END'
{NVIDIA_SMI}END
chmod 755 /usr/local/bin/nvidia-smi
"""
T = TypeVar("T")


@dataclass(slots=True)
class LabStack:
    """What a command reads of a stack: its config and its outputs."""

    name: str
    values: dict[str, str]
    exports: dict[str, Any]

    def config(self) -> dict[str, str]:
        return self.values

    def outputs(self) -> dict[str, Any]:
        return self.exports


@dataclass(slots=True)
class Journey:
    """`seen`: the statuses that were different from the one before, with time.monotonic()."""

    provider: Provider
    suite: Suite
    spec: DeploymentSpec
    network: Network
    guest: Guest
    metadata: MetadataService
    store: ObjectStore
    index: Index
    wheel: Wheel
    secrets: dict[str, str]  # by what they are
    exports: dict[str, Any]
    seen: list[tuple[float, Status]] = field(default_factory=list)

    @property
    def bucket(self) -> str:
        """The mailbox."""
        return str(self.exports["mailbox"])

    def order(
        self,
        spec: DeploymentSpec | None = None,
        *,
        wheel: Wheel | None = None,
        sha256: str | None = None,
        machine: Machine | None = None,
        more: dict[str, object] | None = None,
    ) -> str:
        """Puts a release into the mailbox as the program does, `current` last; returns its id.

        `sha256`: another digest than the wheel's. `machine`: plan for it and not for the spec's instance type. `more`:
        fields of deployment.json that only another version writes.
        """
        spec, wheel = spec or self.spec, wheel or self.wheel
        with self.network.operator.network_entered():
            model = model_spec_for(self.spec)  # what `spec` names may be missing
        plan = plan_deployment(spec, model) if machine is None else make_plan(spec, model, machine)
        digest = sha256 or wheel.sha256
        parts = (encode(plan.engine_options()), spec.model.encode(), digest.encode())
        release = "r" + hashlib.sha256(b"".join(parts)).hexdigest()[:10]
        deployment = deployment_for(
            spec, plan.engine_options(), plan.predicted(), release=release, names=(GUEST, "10.42.1.4")
        )
        current = Current(
            release=release,
            deployment=release_key(release),
            wheel=wheel_key(release, wheel.file_name),
            sha256=digest,
            index_url=spec.pip_index,
        )
        for key, data in (
            (wheel_key(release, wheel.file_name), wheel.path.read_bytes()),
            (release_key(release), json.dumps(json.loads(encode(deployment)) | (more or {})).encode()),
            (KEYS, keys_object(self.secrets["API key"])),
            (HUB_SECRET, hub_object(self.secrets["hub token"])),
            (LIFE, encode(Life())),
            (CURRENT, encode(current)),
        ):
            self.store.put(self.bucket, key, data)
        self.exports["release"] = release
        return release

    def status(self) -> Status | None:
        data = self.store.get(self.bucket, STATUS)
        if data is None:
            return None
        status = decode_status(data)
        if not self.seen or self.seen[-1][1] != status:
            self.seen.append((time.monotonic(), status))
        return status

    def wait_for(self, what: str, holds: Callable[[Status], T | None]) -> T:
        """Polls the status until `holds` gives something; fails on silence, with all that the guest has to say."""
        began = time.monotonic()
        while True:
            status = self.status()
            if status is not None and (found := holds(status)) is not None:
                return found
            self.guest.follow_reboot()
            last = max(began, self.seen[-1][0]) if self.seen else began
            if not self.guest.is_running or time.monotonic() > last + SILENCE_S:
                raise AssertionError(f"no {what}; {self.report()}")
            time.sleep(0.02)

    def wait_ready(self, release: str) -> Status:
        """Until the machine has proved the endpoint of `release`. Errors on the way are not waited out."""

        def look(status: Status) -> Status | None:
            if status.release != release:
                return None
            if status.error is not None:
                raise AssertionError(f"{status.phase}: {status.error} | {status.hint}; {self.report()}")
            return status if status.phase == "ready" else None

        return self.wait_for(f"release {release} ready", look)

    def wait_failed(self, words: str) -> Status:
        """Until the machine reports an error that holds `words`."""
        return self.wait_for(
            f"error with {words!r}", lambda status: status if status.error and words in status.error else None
        )

    def phase(self) -> str | None:
        """What the agent of this boot is at now: it tells the mailbox every few seconds only."""
        try:
            text = Path(f"/proc/{self.guest.leader}/root{RUN_DIR}/status.json").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return decode_status(text).phase

    def observe(self) -> Observation:
        """What `deployctl status` shows."""
        with self.network.operator.network_entered():
            return self._target().observe()

    def access(self) -> Access:
        """What `deployctl endpoint` knows, the pinned certificate among it."""
        with self.network.operator.network_entered():
            return self._target().access()

    def _target(self) -> CloudTarget:
        plain, _ = config_values(self.spec)
        return CloudTarget(cast(CloudStack, LabStack(NAME, plain, self.exports)))

    def report(self) -> str:
        began = self.seen[0][0] if self.seen else 0.0
        story = [f"{at - began:6.1f} {s.phase} {s.percent} {s.error} | {s.hint}" for at, s in self.seen[-20:]]
        journal = self.guest.journal("-u", "deployctl*", "-n", "150") if self.guest.leader else self.guest.console
        return "\n".join([f"{self.suite} on {self.provider}", *story, journal])


def ask(made: Journey, key: str | None = None) -> str:
    """The endpoint's answer to a fixed question, as a client that pins its certificate gets it."""
    access = made.access()
    with (
        made.network.operator.network_entered(),
        OpenAIClient(access.base_url, key or access.api_key, access.certificate) as client,
    ):
        return client.complete(access.model, [Message("user", "the quick brown fox")], max_tokens=8).text


def scripted_wheel(folder: Path, variant: str = "") -> Wheel:
    """This checkout's wheel with the lab's engine in it. `variant` makes another wheel of the same behaviour."""
    source = (ROOT / "tests/lab/scripted_engine.py").read_text() + (f"# {variant}\n" if variant else "")
    return with_replaced(build_from_checkout(ROOT), {"runtime/engine/main.py": source.encode()}, folder)


def put_model(store: ObjectStore, folder: Path, prefix: str) -> None:
    for path in sorted(folder.iterdir()):
        store.put(MODELS, f"{prefix}/{path.name}", path.read_bytes())


@dataclass(frozen=True, slots=True)
class Site:
    """A guest that has not booted, and all that is around it but its own metadata."""

    provider: Provider
    suite: Suite
    network: Network
    guest: Guest
    store: ObjectStore
    index: Index
    wheel: Wheel
    role: Credential

    @property
    def environment(self) -> dict[str, str]:
        """The owner's keys, and where the store is."""
        return {**OWNER.environment(), ENDPOINT_VARIABLE[self.provider]: self.store.url("").rstrip("/")}

    def values(self) -> dict[str, object]:
        """The spec of a deployment that this site can hold."""
        return {
            "name": NAME,
            "cloud": self.provider,
            "region": REGION[self.provider],
            "instance_type": TYPE[self.provider],
            "model": f"{SCHEME[self.provider]}://{MODELS}/hollow",
            "pip_index": self.index.url,
        }

    def instance(self, user_data: str, instance_id: str = "i-0lab") -> Instance:
        """What its metadata service is to tell."""
        role = self.role
        return Instance(
            self.provider,
            instance_id=instance_id,
            region=REGION[self.provider],
            zone=f"{REGION[self.provider]}a",
            instance_type=TYPE[self.provider],
            user_data=user_data,
            credentials=RoleCredentials("role-of-the-lab", role.access_key, role.secret, role.token or ""),
            # cloud-init of Debian 12 finds no Alibaba instance that wants tokens (tests/lab/test_guest.py).
            tokens_required=(self.suite, self.provider) != ("bookworm", "alicloud"),
            mirror=self.index.host,
        )

    def secrets(self) -> dict[str, str]:
        """By what they are; the API key is random, and not yet anybody's."""
        found = {"API key": f"sk-{secrets.token_hex(16)}", "hub token": f"hf_{secrets.token_hex(16)}"}
        return found | {"role's secret": self.role.secret, "role's token": self.role.token or ""}


def bring_what_images_bring(guest: Guest, suite: Suite, provider: Provider) -> None:
    """A compiler; on AWS the driver too. Neither is ever run: without them the agent would ask for packages."""
    if provider == "aws":
        guest.write("/usr/local/bin/nvidia-smi", NVIDIA_SMI, 0o755)
    guest.write("/usr/local/bin/gcc", "#!/bin/sh\nexit 1\n", 0o755)
    guest.write(f"/usr/include/python{PYTHON[suite]}/Python.h", "")
    guest.write("/etc/pip.conf", "[install]\ncompile = no\n")  # most of what is installed here is never imported


@contextmanager
def site(
    suite: Suite,
    provider: Provider,
    folder: Path,
    *,
    disk: str = "2g",
    torch: str | None = None,
    shard_bytes: int = 2 * 2**20,
) -> Iterator[Site]:
    """Skips, or fails on CI, where no guest can run.

    `torch`: the version of the real one, for this checkout's own engine; None: a scripted engine.
    """
    require_lab()
    wheels = folder / "wheels"
    offered = offered_wheels(wheels, PYTHON[suite], torch=torch)
    role = vm_role(weights=("hollow/", "real/"))
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        net = stack.enter_context(network(METADATA_ADDRESS[provider]))
        with net.operator.network_entered():
            store = ObjectStore(REGION[provider], (OWNER, role), host=OPERATOR)
        stack.enter_context(store)
        index = stack.enter_context(serve_index(offered, net.operator, {INSTALLER_PATH: INSTALLER.encode()}))
        store.create_bucket(MODELS)
        put_model(store, write_hollow_model(folder / "hollow", shard_bytes=shard_bytes), "hollow")
        (folder / "guest").mkdir()
        guest = stack.enter_context(make_guest(suite, provider, net, folder / "guest", disk=disk))
        bring_what_images_bring(guest, suite, provider)
        wheel = build_from_checkout(ROOT) if torch else scripted_wheel(wheels / "own")
        made = Site(provider, suite, net, guest, store, index, wheel, role)
        for name, value in made.environment.items():
            patch.setenv(name, value)
        yield made


@contextmanager
def journey(
    suite: Suite,
    provider: Provider,
    folder: Path,
    *,
    disk: str = "2g",
    torch: str | None = None,
    shard_bytes: int = 2 * 2**20,
    values: dict[str, object] | None = None,
) -> Iterator[Journey]:
    """Everything but the release; the guest has not booted yet. `values`: more of the spec."""
    with site(suite, provider, folder, disk=disk, torch=torch, shard_bytes=shard_bytes) as at:
        at.store.create_bucket(BUCKET)
        spec = parse({**at.values(), **(values or {})})
        region = REGION[provider]
        vm = Vm(name=NAME, provider=provider, region=region, bucket=BUCKET, endpoint=at.store.url(BUCKET))
        instance, secret = at.instance(render_user_data(vm)), at.secrets()
        exports: dict[str, Any] = {
            "endpoint": f"https://{GUEST}:{spec.port}/v1",
            "api_key": secret["API key"],
            "instance_id": instance.instance_id,
            "region": region,
            "mailbox": BUCKET,
        }
        with serve_metadata(instance, at.network.operator) as metadata:
            yield Journey(
                provider, suite, spec, at.network, at.guest, metadata, at.store, at.index, at.wheel, secret, exports
            )
