"""The lab itself: what the journeys on a guest rest on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from runtime.vm import METADATA_ADDRESS, Provider
from tests.e2e.journey import wait_for
from tests.lab.guest import Guest, make_guest, require_lab
from tests.lab.metadata_service import Instance, MetadataService, serve_metadata
from tests.lab.network import network
from tests.lab.packages import ROOT
from tests.lab.rootfs import Suite

pytestmark = pytest.mark.timeout(600)  # the first guest ever must have its root file system built

USER_DATA = """#cloud-config
write_files:
  - path: /etc/lab/arrived
    content: "yes"
runcmd:
  - [touch, /etc/lab/ran]
"""
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 80), 2)"
ABANDON = """
import pathlib, sys
from tests.lab.guest import make_guest
from tests.lab.network import network
with network("169.254.169.254") as net, make_guest("bookworm", "aws", net, pathlib.Path(sys.argv[1])) as guest:
    guest.boot()
    print(guest.leader, flush=True)
    sys.stdin.read()
"""
Start = Callable[[Suite, Provider, bool], tuple[Guest, MetadataService]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Boots a guest of a suite on a cloud; the last word: whether its metadata wants tokens."""
    require_lab()
    with ExitStack() as stack:

        def boot(suite: Suite, provider: Provider, tokens_required: bool) -> tuple[Guest, MetadataService]:
            net = stack.enter_context(network(METADATA_ADDRESS[provider]))
            instance = Instance(
                provider, "i-lab", "eu-west-1", "eu-west-1a", "g6.2xlarge", USER_DATA, tokens_required=tokens_required
            )
            service = stack.enter_context(serve_metadata(instance, net.operator))
            guest = stack.enter_context(make_guest(suite, provider, net, tmp_path))
            guest.boot()
            return guest, service

        yield boot


@pytest.mark.parametrize(
    ("suite", "provider", "tokens_required"),
    [
        ("bookworm", "aws", True),
        pytest.param("trixie", "aws", True, marks=pytest.mark.slow),
        pytest.param("bookworm", "alicloud", False, marks=pytest.mark.slow),
        pytest.param("trixie", "alicloud", True, marks=pytest.mark.slow),
    ],
)
def test_user_data_reaches_an_instance_through_its_clouds_metadata(
    start: Start, suite: Suite, provider: Provider, tokens_required: bool
) -> None:
    guest, service = start(suite, provider, tokens_required)
    guest.run("cloud-init", "status", "--wait", code=None)
    assert guest.read("/etc/lab/arrived") == "yes"
    assert (guest.root / "etc/lab/ran").exists()
    assert guest.run("cloud-id").strip() == {"aws": "aws", "alicloud": "aliyun"}[provider]
    fetched = [seen for seen in service.seen if seen.path.endswith("user-data") and seen.status == 200]
    assert fetched
    assert all(seen.with_token for seen in fetched) is tokens_required


@pytest.mark.slow
def test_debian_12s_cloud_init_finds_no_alibaba_instance_that_wants_tokens(start: Start) -> None:
    """Why the image rules ask for a newer cloud-init where tokens are required."""
    guest, service = start("bookworm", "alicloud", True)
    guest.run("cloud-init", "status", "--wait", code=None, timeout_s=150)
    assert not (guest.root / "etc/lab/arrived").exists()
    assert {seen.status for seen in service.seen} == {403}


@pytest.mark.slow
def test_a_power_cut_ends_every_process_and_keeps_the_disk(start: Start) -> None:
    guest, _ = start("bookworm", "aws", True)
    guest.run("systemd-run", "--unit=lab-sleeper", "sleep", "3600")
    guest.run("touch", "/var/kept", "/run/gone")
    first = guest.leader
    guest.cut()
    assert not guest.is_running
    guest.boot()
    assert guest.leader != first
    assert (guest.root / "var/kept").exists()
    assert guest.run("ls", "/run/gone", code=2) == ""
    assert guest.run("systemctl", "is-active", "lab-sleeper", code=None).strip() == "inactive"


@pytest.mark.slow
def test_units_can_be_kept_from_an_address(start: Start) -> None:
    guest, _ = start("bookworm", "aws", True)
    address = METADATA_ADDRESS["aws"]
    guest.wait_for("the bus", lambda: guest.succeeds("test", "-S", "/run/dbus/system_bus_socket"), 60)
    probe = ("python3", "-c", CONNECT, address)
    guest.run("systemd-run", "--wait", "--pipe", *probe)
    guest.run("systemd-run", "--wait", "--pipe", f"--property=IPAddressDeny={address}", *probe, code=1)


def test_a_guest_ends_with_its_test_process_however_that_ends(tmp_path: Path) -> None:
    require_lab()
    process = subprocess.Popen(
        [sys.executable, "-c", ABANDON, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    leader = Path("/proc", process.stdout.readline().strip())
    assert (leader / "cmdline").read_text().startswith("/usr/lib/systemd/systemd")
    process.kill()
    process.communicate()
    wait_for("the end of the guest", lambda: None if leader.exists() else True)


def test_a_guest_leaves_nothing_on_this_machine(tmp_path: Path) -> None:
    require_lab()
    with network(METADATA_ADDRESS["aws"]) as net, make_guest("bookworm", "aws", net, tmp_path) as guest:
        guest.boot()
        leader, holders = guest.leader, (net.operator.pid, net.guest.pid)
    left = [pid for pid in (leader, *holders) if Path(f"/proc/{pid}").exists()]
    assert left == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    assert not list(Path("/sys/fs/cgroup").glob(f"*/{guest.name}"))
