"""One journey per cloud, from `deployctl up` to `deployctl down`: the program's own resources, and a machine that boots
with its user-data: real cloud-init, systemd, stage 0, agent and server in a guest.

The engine is scripted and moves no tensors; test_cloud_torch.py has the real one.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import httpx
import pytest

from provision.client import pinned_context
from provision.errors import EndpointError
from runtime.mailbox import Phase
from runtime.vm import METADATA_ADDRESS, STATE_DIR
from tests.e2e.chained_journey import Chain, chain, follow_down
from tests.e2e.cloud_journey import MODELS, NAME, SCHEME, Journey, ask, scripted_wheel
from tests.lab.network import GUEST

pytestmark = pytest.mark.timeout(600)  # the first guest ever must have its root file system built

PORT = 8000
UNITS = ("deployctl-agent", "deployctl-server", "deployctl-engine")
JOIN = "echo $$ > /sys/fs/cgroup/system.slice/{unit}.service/cgroup.procs && exec python3 -c '{program}'"
CONNECT = 'import socket; socket.create_connection(("{address}", 80), 2)'


@pytest.fixture(
    scope="module",
    params=[
        ("bookworm", "aws"),
        ("trixie", "alicloud"),
        pytest.param(("trixie", "aws"), marks=pytest.mark.slow),
        pytest.param(("bookworm", "alicloud"), marks=pytest.mark.slow),
    ],
    ids="-".join,
)
def deployed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """What one `deployctl up` has made."""
    suite, provider = request.param
    with chain(suite, provider, tmp_path_factory.mktemp("journey")) as made:
        yield made


@pytest.fixture
def ready(deployed: Chain) -> Journey:
    """Its machine, which came up by itself and serves its first release."""
    return deployed.journey


def served_length(ready: Journey) -> int:
    """max_model_len, as the endpoint itself tells it."""
    access = ready.access()
    headers = {"Authorization": f"Bearer {access.api_key}"}
    with (
        ready.network.operator.network_entered(),
        httpx.Client(verify=pinned_context(access.certificate or ""), headers=headers, trust_env=False) as client,
    ):
        (model,) = client.get(f"{access.base_url}/models").json()["data"]
        return int(model["max_model_len"])


def test_up_shows_the_phases_of_the_machine_and_ends_with_an_endpoint_that_answers(deployed: Chain) -> None:
    assert deployed.up.returncode == 0, deployed.up.stderr
    said = re.findall(r"^  (\w+)(?: \d+ %.*)?$", deployed.up.stderr, re.MULTILINE)
    phases = [word for word in dict.fromkeys(said) if word in get_args(Phase)]
    assert phases == sorted(phases, key=get_args(Phase).index)
    assert (phases[0], phases[-1]) == ("python", "ready")
    assert len(phases) > 2  # those that last longer than the pause between two looks
    found = json.loads(deployed.up.stdout)
    assert found["base_url"] == f"https://{GUEST}:{PORT}/v1"
    assert found["answer"]
    assert {check["answer"] for check in found["checks"]} <= {"yes", "unknown"}


def test_the_endpoint_answers_its_key_under_the_published_certificate(ready: Journey) -> None:
    assert ask(ready)


def test_the_endpoint_refuses_a_wrong_key(ready: Journey) -> None:
    with pytest.raises(EndpointError, match="refuses the API key"):
        ask(ready, "sk-wrong")


def test_the_certificate_is_trusted_by_nobody_who_has_not_pinned_it(ready: Journey) -> None:
    with (
        ready.network.operator.network_entered(),
        socket.create_connection((GUEST, PORT), 5) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl.create_default_context().wrap_socket(plain, server_hostname=GUEST)


def test_status_shows_what_the_machine_reports(deployed: Chain) -> None:
    seen = json.loads(deployed.run("status", NAME, "--json").stdout)
    assert (seen["life"], seen["phase"], seen["error"]) == ("ready", "ready", None)
    assert seen["release"] == seen["wanted_release"]
    assert seen["instance_id"] == deployed.journey.metadata.instance.instance_id


def test_user_data_is_valid_for_the_schema_of_this_cloud_init(ready: Journey) -> None:
    ready.guest.write("/root/user-data", ready.metadata.instance.user_data)
    assert "Valid" in ready.guest.run("cloud-init", "schema", "--config-file", "/root/user-data")


@pytest.mark.parametrize("unit", UNITS[1:])
def test_server_and_engine_cannot_reach_the_metadata_service(ready: Journey, unit: str) -> None:
    """A process of the unit's own control group tries, as root; without the unit it gets through."""
    program = CONNECT.format(address=METADATA_ADDRESS[ready.provider])
    ready.guest.run("python3", "-c", program)
    ready.guest.run("sh", "-c", JOIN.format(unit=unit, program=program), code=1)


def test_server_and_engine_are_users_without_privileges(ready: Journey) -> None:
    for unit in UNITS[1:]:
        status = ready.guest.run("cat", f"/proc/{main_pid(ready, unit)}/status")
        fields = dict(line.split(":\t", 1) for line in status.splitlines())
        assert fields["Uid"].split()[0] != "0"
        assert (fields["NoNewPrivs"], int(fields["CapBnd"], 16)) == ("1", 0)


def test_agent_server_and_engine_write_to_the_journal_alone(ready: Journey) -> None:
    for unit in UNITS:
        ends = [f"/proc/{main_pid(ready, unit)}/fd/{number}" for number in (1, 2)]
        assert all(ready.guest.run("readlink", end).startswith("socket:") for end in ends), unit
    assert ready.guest.run("find", "/var/log", "-name", "*deployctl*") == ""


def test_no_secret_stands_in_user_data_arguments_logs_or_on_the_disk(ready: Journey) -> None:
    arguments = ready.guest.run("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    environments = ready.guest.run("sh", "-c", "cat /proc/[0-9]*/environ | tr '\\0' ' '")
    uploaded = "".join(
        (ready.store.get(ready.exports["mailbox"], key) or b"").decode(errors="replace")
        for key in ready.store.keys(ready.exports["mailbox"], "status/")
    )
    places = {
        "user-data": ready.metadata.instance.user_data,
        "arguments": arguments,
        "environments": environments,
        "journal": ready.guest.journal(),
        "status/": uploaded,
    }
    for what, secret in ready.secrets.items():
        assert [place for place, text in places.items() if secret in text] == [], what
        holders = subprocess.run(
            ["grep", "-rlF", "--", secret, *(str(ready.guest.root / name) for name in ("etc", "var", "run", "root"))],
            capture_output=True,
            text=True,
            check=False,
        )
        assert holders.stdout == "", what


@pytest.mark.slow
def test_a_power_cut_of_a_ready_machine_heals_without_another_download(ready: Journey) -> None:
    before = {key: ready.store.bytes_served(MODELS, key) for key in ready.store.keys(MODELS)}
    packages = list(ready.index.fetched)
    release = ready.exports["release"]
    ready.guest.cut()
    ready.seen.clear()
    cut_at = ready.store.get(ready.exports["mailbox"], "status/status.json")
    ready.guest.boot()
    ready.wait_for(
        "a status of this boot",
        lambda _: True if ready.store.get(ready.exports["mailbox"], "status/status.json") != cut_at else None,
    )
    ready.wait_ready(release)
    assert ask(ready)
    weights = {key: ready.store.bytes_served(MODELS, key) for key in before if key.endswith(".safetensors")}
    assert weights == {key: count for key, count in before.items() if key in weights}
    assert ready.index.fetched == packages


def test_a_redeploy_through_the_mailbox_keeps_machine_port_and_certificate(deployed: Chain) -> None:
    ready = deployed.journey
    certificate = ready.access().certificate
    assert served_length(ready) == 512
    watch = PortWatch(ready)
    watch.start()
    done = deployed.run("redeploy", NAME, "--max-model-len", "256", "--yes", "--json")
    watch.end()
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ready.exports["release"] = found["release"]
    assert found["instance_id"] == ready.metadata.instance.instance_id
    assert served_length(ready) == 256
    assert watch.tries > 10
    assert watch.refused == 0
    assert ready.access().certificate == certificate


@pytest.mark.slow
def test_a_redeploy_to_a_missing_model_says_so_and_the_release_before_still_serves(ready: Journey) -> None:
    serving = ready.exports["release"]
    missing = ready.spec.model_copy(update={"model": f"{SCHEME[ready.provider]}://{MODELS}/nothing"})
    ready.order(missing)
    status = ready.wait_failed("nothing")
    assert "weights" in (status.error or "")
    assert status.hint
    ready.wait_for("the release before", lambda seen: True if seen.release == serving else None)
    assert ask(ready)


@pytest.mark.slow
def test_a_redeploy_with_another_wheel_moves_the_agent_itself(ready: Journey, tmp_path: Path) -> None:
    wheel = scripted_wheel(tmp_path, "another")
    before = ready.guest.run("readlink", "-f", f"{STATE_DIR}/agent").strip()
    ready.wait_ready(ready.order(wheel=wheel))
    ready.guest.wait_for("the agent's new environment", lambda: moved_from(ready, before), 60)
    assert ask(ready)


def test_down_ends_the_machine_and_proves_that_nothing_is_left(deployed: Chain) -> None:
    """The last of the journey."""
    done = follow_down(deployed)
    assert done.returncode == 0, done.stderr
    assert "0 resources left, $0.00/h" in done.stdout
    assert not deployed.journey.guest.is_running
    assert list(deployed.journey.store.buckets) == [MODELS]


def moved_from(ready: Journey, before: str) -> bool | None:
    return True if ready.guest.run("readlink", "-f", f"{STATE_DIR}/agent").strip() != before else None


def main_pid(ready: Journey, unit: str) -> str:
    return ready.guest.run("systemctl", "show", "--property=MainPID", "--value", unit).strip()


class PortWatch(threading.Thread):
    """Connects again and again, and counts how often nobody listens."""

    def __init__(self, ready: Journey) -> None:
        super().__init__(daemon=True)
        self.tries = 0
        self.refused = 0
        self._operator = ready.network.operator
        self._over = threading.Event()

    def run(self) -> None:
        with self._operator.network_entered():
            while not self._over.wait(0.05):
                self.tries += 1
                try:
                    socket.create_connection((GUEST, PORT), timeout=5).close()
                except ConnectionRefusedError:
                    self.refused += 1

    def end(self) -> None:
        self._over.set()
        self.join()
