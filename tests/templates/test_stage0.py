"""Stage 0 as a process, between a metadata service and a store that check what it sends."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar, cast

import pytest

from runtime.deployment import encode
from runtime.mailbox import CURRENT, STATUS, Current, FolderMailbox, Status, decode_status
from runtime.vm import Provider, Vm
from tests.lab.http_server import HttpServer
from tests.lab.metadata_service import Instance, MetadataService, RoleCredentials
from tests.lab.object_store import ObjectStore, vm_role
from tests.templates.stage0_program import load_stage0

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 20.0
WHEEL = "release/r1/deployctl-1.0-py3-none-any.whl"
ROLE = vm_role()
BOOTSTRAP = """
import os, pathlib
def bring_up(cloud, wheel, current):
    state = pathlib.Path(os.environ["STATE"])
    (state / "ran").write_text(f"{wheel}\\n{current and current['release']}")
"""
REFUSING = """
class Refused(Exception):
    hint = "choose another index"
def bring_up(cloud, wheel, current):
    raise Refused("pip install: no such package")
"""


def wheel_of(bootstrap: str, padding: int = 0) -> bytes:
    """A wheel with nothing in it but the second half of stage 0. `padding`: bytes that make it larger."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("runtime/agent/bootstrap.py", bootstrap)
        archive.writestr("padding", os.urandom(padding))
    return data.getvalue()


@dataclass
class Machine:
    """A VM's view of the world, and stage 0 on it."""

    folder: Path
    provider: Provider
    store: ObjectStore
    service: MetadataService
    metadata: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def release(self, wheel: bytes, sha256: str | None = None) -> Current:
        """Puts a release into the mailbox, `current.json` last."""
        current = Current(
            release="r1",
            deployment="release/r1/deployment.json",
            wheel=WHEEL,
            sha256=sha256 or hashlib.sha256(wheel).hexdigest(),
        )
        self.store.put("mail", WHEEL, wheel)
        self.store.put("mail", CURRENT, encode(current))
        return current

    def start(self, patience_s: float = 30) -> subprocess.Popen[str]:
        env = {**os.environ, "STATE": str(self.state), "PATH": f"{self.folder}:{os.environ['PATH']}"}
        argv = [
            sys.executable,
            "-m",
            "tests.templates.stage0_program",
            self.metadata,
            str(self.folder),
            str(patience_s),
        ]
        self.processes.append(
            subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
        return self.processes[-1]

    def run(self) -> str:
        """To the end; returns what it logged."""
        process = self.start()
        said = process.communicate(timeout=WAIT_S)[0]
        assert process.returncode == 0, said
        return said

    def status(self) -> Status | None:
        data = self.store.get("mail", STATUS)
        return None if data is None else decode_status(data)

    def wait_for(self, what: str, look: Callable[[], T | None]) -> T:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            if (found := look()) is not None:
                return found
            time.sleep(0.01)
        raise AssertionError(f"not within {WAIT_S:g} s: {what}; status {self.status()}")

    def wait_for_error(self) -> Status:
        return self.wait_for("an error", lambda: found if (found := self.status()) and found.error else None)


@pytest.fixture(params=["aws", "alicloud"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    yield from make_machine(request.param, tmp_path)


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[Machine]:
    yield from make_machine("aws", tmp_path)


@pytest.fixture
def alicloud(tmp_path: Path) -> Iterator[Machine]:
    yield from make_machine("alicloud", tmp_path)


def make_machine(provider: Provider, folder: Path) -> Iterator[Machine]:
    region = {"aws": "eu-west-1", "alicloud": "cn-hangzhou"}[provider]
    role = RoleCredentials("the-role", ROLE.access_key, ROLE.secret, ROLE.token or "")
    service = MetadataService(Instance(provider, "i-0abc", region, f"{region}a", "g6.xlarge", "", credentials=role))
    with ExitStack() as stack:
        store = stack.enter_context(ObjectStore(region, (ROLE,)))
        store.create_bucket("mail")
        metadata = stack.enter_context(_Http(service))
        vm = Vm(name="llm", provider=provider, region=region, bucket="mail", endpoint=store.url("mail"))
        (folder / "vm.json").write_bytes(encode(vm))
        (folder / "systemctl").write_text("#!/bin/sh\nexit ${SYSTEMCTL_SAYS:-1}\n")
        (folder / "systemctl").chmod(0o755)
        machine = Machine(folder, provider, store, service, metadata)
        yield machine
        for process in machine.processes:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


class _Http:
    """The metadata service on loopback. Gives its base URL."""

    def __init__(self, service: MetadataService) -> None:
        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, body = service.answer(self.command, self.path, headers)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            do_GET = do_PUT = answer

            def log_message(self, *_: object) -> None:
                return

        self._server = HttpServer(Handler)

    def __enter__(self) -> str:
        self._server.start()
        return f"{self._server.url}/latest/"

    def __exit__(self, *_: object) -> None:
        self._server.stop()


def test_it_fetches_the_wheel_with_the_role_and_runs_what_is_inside(machine: Machine) -> None:
    current = machine.release(wheel := wheel_of(BOOTSTRAP))
    machine.run()
    path, release = (machine.state / "ran").read_text().split("\n")
    assert release == "r1"
    assert Path(path).name == "deployctl-1.0-py3-none-any.whl"  # pip reads the version from it
    assert Path(path).parent.name == (current.sha256 or "")[:12]
    assert Path(path).read_bytes() == wheel


def test_its_status_is_one_that_the_user_can_read(machine: Machine) -> None:
    machine.release(wheel_of(BOOTSTRAP))
    machine.run()
    status = machine.status()
    assert status is not None
    assert (status.instance_id, status.release, status.phase, status.error) == ("i-0abc", "r1", "python", None)
    assert abs(status.updated_at - time.time()) < WAIT_S


def test_it_waits_for_a_role_that_is_attached_later(alicloud: Machine) -> None:
    alicloud.release(wheel_of(BOOTSTRAP))
    role = alicloud.service.instance.credentials
    alicloud.service.attach(None)
    process = alicloud.start()
    assert process.stdout is not None
    assert "404" in process.stdout.readline()
    alicloud.service.attach(role)
    assert process.wait(WAIT_S) == 0


def test_it_works_where_the_metadata_service_gives_no_token(alicloud: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    alicloud.release(wheel_of(BOOTSTRAP))
    answer = MetadataService.answer

    def without_token(self: MetadataService, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        return (404, "") if path.endswith("/api/token") else answer(self, method, path, headers)

    monkeypatch.setattr(MetadataService, "answer", without_token)
    alicloud.service.instance = replace(alicloud.service.instance, tokens_required=False)
    alicloud.run()
    assert (alicloud.state / "ran").exists()


def test_a_release_that_comes_later_is_waited_for(aws: Machine) -> None:
    process = aws.start()
    assert process.stdout is not None
    assert CURRENT in process.stdout.readline()
    aws.release(wheel_of(BOOTSTRAP))
    assert process.wait(WAIT_S) == 0


def test_a_mailbox_that_is_a_folder_of_the_machine_is_waited_for_and_read_without_any_store(alicloud: Machine) -> None:
    spool = FolderMailbox(alicloud.folder / "spool")
    vm = Vm(name="llm", provider="alicloud", region="cn-hangzhou", bucket="", endpoint="", spool=str(spool.root))
    (alicloud.folder / "vm.json").write_bytes(encode(vm))
    process = alicloud.start(patience_s=0)
    wheel, store = wheel_of(BOOTSTRAP, padding=300_000), alicloud.store
    (spool.root / "status").mkdir(parents=True)
    alicloud.store = cast(ObjectStore, Spool(spool))
    alicloud.release(wheel)
    assert process.wait(WAIT_S) == 0
    path, release = (alicloud.state / "ran").read_text().split("\n")
    assert (release, Path(path).read_bytes()) == ("r1", wheel)
    status = alicloud.status()
    assert status is not None
    assert (status.instance_id, status.release, status.error) == ("i-0abc", "r1", None)
    assert not store.requests


@dataclass
class Spool:
    """A folder in the place of a store."""

    mailbox: FolderMailbox

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self.mailbox.put(key, data)

    def get(self, bucket: str, key: str) -> bytes | None:
        return self.mailbox.get(key)


def test_what_is_cut_off_is_resumed_and_no_byte_comes_twice(machine: Machine) -> None:
    wheel = wheel_of(BOOTSTRAP, padding=300_000)
    machine.release(wheel)
    machine.store.faults.keys = {WHEEL}
    machine.store.faults.cut_after = 70_000
    machine.run()
    assert machine.store.bytes_served("mail", WHEEL) == len(wheel)
    assert machine.store.served_again("mail", WHEEL) == 0


def test_a_kill_in_the_middle_of_the_download_costs_at_most_what_was_in_flight(aws: Machine) -> None:
    wheel = wheel_of(BOOTSTRAP, padding=2_000_000)
    current = aws.release(wheel)
    part = aws.state / "wheels" / (current.sha256 or "")[:12] / (Path(WHEEL).name + ".part")
    aws.store.faults.keys = {WHEEL}
    aws.store.faults.bytes_per_s = 1_000_000
    process = aws.start()
    aws.wait_for("half of the wheel", lambda: True if part.exists() and part.stat().st_size > 500_000 else None)
    process.kill()
    process.wait()
    kept = part.stat().st_size
    aws.store.faults.bytes_per_s = None
    aws.run()
    assert max(start for start, _ in aws.store.served[f"mail/{WHEEL}"]) == kept


def test_a_wheel_that_was_fetched_whole_before_the_kill_is_not_fetched_again(aws: Machine) -> None:
    wheel = wheel_of(BOOTSTRAP)
    current = aws.release(wheel)
    part = aws.state / "wheels" / (current.sha256 or "")[:12] / (Path(WHEEL).name + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(wheel)
    aws.run()
    assert aws.store.bytes_served("mail", WHEEL) == 0
    assert (aws.state / "ran").exists()


def test_a_wrong_sha256_is_told_with_a_hint_and_mended_by_the_next_release(machine: Machine) -> None:
    machine.release(wheel_of(BOOTSTRAP), sha256="0" * 64)
    process = machine.start()
    status = machine.wait_for_error()
    assert "SHA-256" in (status.error or "")
    assert status.hint == "run `deployctl up` again"
    assert process.poll() is None
    machine.release(wheel_of(BOOTSTRAP))
    assert process.wait(WAIT_S) == 0


def test_a_failure_of_the_second_half_is_told_with_its_own_words(aws: Machine) -> None:
    aws.release(wheel_of(REFUSING))
    process = aws.start()
    status = aws.wait_for_error()
    assert status.error == "pip install: no such package"
    assert status.hint == "choose another index"
    aws.release(wheel_of(BOOTSTRAP))
    assert process.wait(WAIT_S) == 0


def test_an_error_stays_while_the_same_is_tried_again(aws: Machine) -> None:
    aws.release(wheel_of(REFUSING))
    aws.start()
    first = aws.wait_for_error()
    seen = [first]

    def look() -> bool | None:
        if (found := aws.status()) is None or found.updated_at == first.updated_at:
            return None
        seen.append(found)
        return True

    aws.wait_for("another attempt", look)
    assert {status.error for status in seen} == {"pip install: no such package"}


def test_a_wheel_that_stays_wrong_is_fetched_less_and_less_often(aws: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    aws.release(wheel_of(BOOTSTRAP), sha256="0" * 64)
    monkeypatch.setenv("PATH", f"{aws.folder}:{os.environ['PATH']}")
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 6:
            raise KeyboardInterrupt

    program = load_stage0(aws.metadata, aws.folder)
    program.PAUSES = (2, 60)
    program.time = SimpleNamespace(**{**vars(time), "sleep": sleep})
    with pytest.raises(KeyboardInterrupt):
        program.main()
    assert pauses == [2, 4, 8, 16, 32, 60]


def test_a_full_disk_is_told_at_once(aws: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    aws.release(wheel_of(BOOTSTRAP))
    monkeypatch.setenv("PATH", f"{aws.folder}:{os.environ['PATH']}")
    program = load_stage0(aws.metadata, aws.folder)
    reports: list[tuple[str, str]] = []

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def post(cloud: object, *, error: str = "", hint: str = "") -> None:
        if error:
            reports.append((error, hint))
            raise KeyboardInterrupt

    program.Cloud.download = full
    program.Cloud.post = post
    with pytest.raises(KeyboardInterrupt):
        program.main()
    assert reports == [("OSError: [Errno 28] No space left on device", "raise disk_gib")]


def test_what_may_heal_by_itself_is_an_error_only_after_a_while(aws: Machine) -> None:
    aws.store.faults.busy = 3
    aws.release(wheel_of(BOOTSTRAP))
    said = aws.run()
    assert "SlowDown" in said
    status = aws.status()
    assert status is not None
    assert status.error is None


def test_what_does_not_heal_is_an_error_in_the_end(aws: Machine) -> None:
    aws.start(patience_s=0.5)
    status = aws.wait_for_error()
    assert "404" in (status.error or "")
    assert CURRENT in (status.error or "")
    assert "role" in (status.hint or "")


def test_an_agent_that_is_installed_comes_back_without_the_mailbox(aws: Machine) -> None:
    wheel = aws.folder / "kept.whl"
    wheel.write_bytes(wheel_of(BOOTSTRAP))
    (aws.state / "agent").mkdir(parents=True)
    (aws.state / "agent" / "ready").write_text(str(wheel))
    aws.run()
    assert (aws.state / "ran").read_text() == f"{wheel}\nNone"
    assert aws.store.requests == []


def test_an_agent_that_systemd_has_given_up_gets_the_wheel_that_the_release_names(
    aws: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = aws.folder / "broken.whl"
    broken.write_bytes(wheel_of(REFUSING))
    (aws.state / "agent").mkdir(parents=True)
    (aws.state / "agent" / "ready").write_text(str(broken))
    aws.release(wheel_of(BOOTSTRAP))
    monkeypatch.setenv("SYSTEMCTL_SAYS", "0")
    aws.run()
    assert (aws.state / "ran").read_text().endswith("\nr1")


def test_the_proxy_of_the_environment_is_not_for_mailbox_and_metadata(
    aws: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    aws.release(wheel_of(BOOTSTRAP))
    aws.run()
    assert (aws.state / "ran").exists()


def test_nothing_that_it_logs_or_reports_holds_a_secret(aws: Machine) -> None:
    aws.release(wheel_of(BOOTSTRAP), sha256="1" * 64)
    process = aws.start()
    aws.wait_for_error()
    process.kill()
    said = process.communicate()[0] + json.dumps((aws.store.get("mail", STATUS) or b"").decode())
    assert said
    for secret in (ROLE.secret, ROLE.token or "?", aws.service.token):
        assert secret not in said
