"""The target `host` on this side of the connection: what is remembered, sent, and understood of what comes back."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.cli.host_options import refuse_without_host
from provision.cli.host_up import introduce, names_of
from provision.errors import ConnectionFailedError, StateError, UsageError
from provision.host import HostRecord, HostTarget, is_host
from provision.host_model import files_of, remote_folder
from provision.host_report import parse_removal, parse_units
from provision.render import WheelItem, render
from provision.spec import SpecError, parse
from provision.ssh import fingerprint
from provision.state import LocalState
from provision.target import ProcessView
from runtime.deployment import EngineOptions, Predicted, encode
from runtime.mailbox import CURRENT, Current, decode_current, release_key
from tests.lab.sshd import Sshd, free_port, serve_ssh

VALUES = {"name": "box", "host": "ops@203.0.113.10", "model": "Qwen/Qwen2.5-7B-Instruct"}
RECORD = HostRecord(user="ops", address="203.0.113.10", port=22, host_key="ssh-ed25519 AAAA")
ENGINE = EngineOptions(dtype="float32", device="cpu", max_model_len=512, max_num_seqs=4)
PREDICTED = Predicted(weights_bytes=1, kv_bytes_per_token=1, kv_blocks=1, activation_bytes=1)


@pytest.fixture
def state(tmp_path: Path) -> LocalState:
    return LocalState("box", tmp_path / "box")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with serve_ssh(tmp_path_factory.mktemp("sshd")) as running:
        yield running


def test_a_named_host_is_the_target() -> None:
    spec = parse(VALUES)
    assert (spec.cloud, spec.tls, spec.ttl) == ("host", "pinned", "0")
    assert parse(spec.public_values()) == spec


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"tls": "acme", "domain": "llm.example.org"}, "tls"),
        ({"model": "s3://bucket/model"}, "model"),
        ({"ttl": "8h"}, "ttl"),
        ({"idle_stop": "30m"}, "idle_stop"),
        ({"weights_disk_gib": 100}, "weights_disk_gib"),
        ({"ssh_public_key": "~/.ssh/id_ed25519.pub"}, "ssh_public_key"),
    ],
)
def test_what_is_for_rented_machines_is_refused(values: dict[str, object], path: str) -> None:
    with pytest.raises(SpecError) as error:
        parse(VALUES | values)
    assert [problem.path for problem in error.value.problems] == [path]


def test_options_of_a_host_are_refused_where_they_would_be_ignored() -> None:
    refuse_without_host(parse(VALUES), "SHA256:x", Path("key"))
    with pytest.raises(UsageError, match="--identity is for a machine over SSH"):
        refuse_without_host(parse({"name": "chat"}), None, Path("key"))


def test_a_release_names_its_wheel_and_the_model_as_the_machine_sees_it() -> None:
    wheel = WheelItem(Path("w.whl"), "0" * 64, "release/r1/w.whl")
    order = render(
        parse(VALUES), ENGINE, PREDICTED, release="r1", api_key="sk-x", wheel=wheel, names=("box",), source="/there"
    )
    objects = dict(order.objects)
    current = decode_current(objects[CURRENT])
    assert (current.wheel, current.sha256) == ("release/r1/w.whl", "0" * 64)
    assert b'"source": "/there"' in objects[release_key("r1")]
    assert order.objects[-1][0] == CURRENT
    assert b"sk-x" not in b"".join(objects.values())


def test_a_state_folder_knows_that_it_is_a_hosts(state: LocalState) -> None:
    assert not is_host(state)
    HostTarget(state).write_record(RECORD)
    assert is_host(state)
    assert HostTarget(state).record == RECORD


def test_a_damaged_record_is_told(state: LocalState) -> None:
    HostTarget(state).write_record(RECORD)
    HostTarget(state).record_file.write_text("{")
    with pytest.raises(StateError, match="damaged"):
        HostTarget(state).login()


def test_the_certificate_names_the_address_as_it_was_written_and_what_it_stands_for() -> None:
    assert names_of(parse(VALUES), "127.0.0.1") == ("127.0.0.1",)
    assert names_of(parse(VALUES), "localhost")[0] == "localhost"
    assert {"127.0.0.1", "::1"} & set(names_of(parse(VALUES), "localhost"))
    assert names_of(parse(VALUES), "box.invalid") == ("box.invalid",)


def test_a_deployment_stays_on_its_machine(state: LocalState) -> None:
    target = HostTarget(state)
    target.write_record(RECORD)
    state.mailbox.put(CURRENT, encode(Current(release="r1", deployment=release_key("r1"))))
    with pytest.raises(UsageError, match="host cannot change"):
        introduce(target, parse(VALUES | {"host": "ops@203.0.113.11"}), host_key=None, identity=None)


def test_a_machine_that_was_met_is_not_asked_again(state: LocalState) -> None:
    target = HostTarget(state)
    target.write_record(RECORD)
    introduce(target, parse(VALUES), host_key=None, identity=Path("/keys/mine"))
    assert target.record == HostRecord(
        user="ops", address="203.0.113.10", port=22, host_key="ssh-ed25519 AAAA", identity="/keys/mine"
    )


def test_another_host_key_can_be_pinned_by_its_fingerprint(server: Sshd, state: LocalState) -> None:
    target = HostTarget(state)
    record = HostRecord(user="ops", address="127.0.0.1", port=server.port, host_key="ssh-ed25519 AAAA")
    target.write_record(record)
    spec = parse(VALUES | {"host": f"ops@127.0.0.1:{server.port}"})
    introduce(target, spec, host_key=fingerprint(server.host_key), identity=None)
    assert target.record.host_key == server.host_key
    assert target.login().known_hosts.read_text() == f"deployctl-box {server.host_key}\n"


def test_a_machine_that_cannot_be_reached_is_unknown_and_not_stopped(state: LocalState) -> None:
    target = HostTarget(state)
    target.write_record(HostRecord(user="ops", address="127.0.0.1", port=free_port(), host_key="ssh-ed25519 AAAA"))
    seen = target.observe()
    assert seen.life == "unknown"
    assert "nothing listens" in (seen.error or "")


def test_down_of_a_machine_that_is_gone_says_what_can_be_deleted_here(state: LocalState) -> None:
    target = HostTarget(state)
    target.write_record(HostRecord(user="ops", address="127.0.0.1", port=free_port(), host_key="ssh-ed25519 AAAA"))
    with pytest.raises(ConnectionFailedError) as error:
        target.remove()
    assert str(state.root) in (error.value.why or "")
    assert state.root.exists()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="files are written as root")
def test_an_upload_survives_a_connection_that_is_cut(server: Sshd, state: LocalState, tmp_path: Path) -> None:
    said: list[str] = []
    login = server.login()
    target = HostTarget(state, said.append)
    target.write_record(
        HostRecord(
            user=login.user, address=login.host, port=login.port, host_key=login.host_key, identity=str(login.key)
        )
    )
    source, there = tmp_path / "large", tmp_path / "there" / "large"
    source.write_bytes(os.urandom(48 * 2**20))

    def cut() -> None:
        deadline = time.monotonic() + 60
        part = there.with_name("large.part")
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            os.sched_yield()
        server.cut()

    thread = threading.Thread(target=cut)
    thread.start()
    target.upload(source, str(there))
    thread.join()
    assert there.read_bytes() == source.read_bytes()
    assert "large goes on" in said[0]


def test_a_model_of_another_content_is_another_folder_there(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "pytorch_model.bin"):
        (folder / name).write_text("x")
    (folder / "sub").mkdir()
    assert [path.name for path in files_of(folder)] == ["config.json", "model.safetensors"]
    before = remote_folder(folder)
    assert before == remote_folder(folder)
    assert before.startswith("/var/lib/deployctl/models/model-")
    (folder / "config.json").write_text("other")
    assert remote_folder(folder) != before


def test_the_removal_is_reported_by_what_was_found() -> None:
    proof = parse_removal(
        [
            "ended 12 /var/lib/deployctl/x/python /var/lib/deployctl/x/bin/deployctl-runtime engine --run x",
            "ended 13 /usr/bin/python3 -u /etc/deployctl/stage0.py ",
            "left process 14 /var/lib/deployctl/x some thing else",
            "left file /etc/deployctl",
            "kept 3221225472 /var/lib/deployctl",
        ]
    )
    assert proof.ended == ("engine (pid 12)", "stage 0 (pid 13)")
    assert proof.processes_left == ("/var/lib/deployctl/x some thing (pid 14)",)
    assert proof.files_left == ("/etc/deployctl",)
    assert proof.kept == "/var/lib/deployctl (3.0 GiB)"


def test_running_units_have_a_pid_and_an_age() -> None:
    shown = (
        "1000.50 7.0\nId=deployctl-agent.service\nMainPID=12\nActiveEnterTimestampMonotonic=900500000\n\n"
        "Id=deployctl-engine.service\nMainPID=0\nActiveEnterTimestampMonotonic=0\n\n"
        "Id=deployctl-server.service\nMainPID=14\nActiveEnterTimestampMonotonic=\n"
    )
    assert parse_units(shown) == (ProcessView("agent", 12, 100.0), ProcessView("server", 14, None))
    assert parse_units("") == ()
