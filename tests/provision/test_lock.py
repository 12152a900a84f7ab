"""deploy.lock: what it fills in, what it lets alone, and when it changes."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from provision.cli.lock import open_lock, other_program
from provision.config import resolve
from provision.errors import UsageError
from provision.host import HostTarget
from provision.lock import (
    Lock,
    Machine,
    Model,
    Packages,
    Program,
    at_commit,
    differences,
    encode_lock,
    is_other_program,
    merged,
    opened,
    outdated,
    pinned,
    planned,
    read_lock,
    upgraded,
)
from provision.model_commit import newest_commit
from provision.spec import DeploymentSpec
from provision.state import LocalState
from provision.target import Observation
from runtime.mailbox import Built
from tests.lab.small_wheel import make_small_wheel

COMMIT, NEWER = "a" * 40, "b" * 40
MODEL = "hf:Qwen/Qwen2.5-0.5B-Instruct"
LOCK = Lock(
    version=1,
    deployctl=Program(version="0.1.0", wheel="1" * 64),
    machine=Machine(
        cloud="aws", region="eu-west-1", instance_type="g5.xlarge", image="ami-0123456789", driver="580.95.05"
    ),
    model=Model(source=MODEL, commit=COMMIT),
    packages=Packages(torch="2.11.0+cu130"),
)


def spec(**values: object) -> DeploymentSpec:
    asked = {"name": "chat", "cloud": "aws", "region": "eu-west-1", "model": MODEL, **values}
    return resolve(asked, env={}).spec


def build(lock: Lock, **parts: Machine | Model | Packages | Program) -> Lock:
    return msgspec.structs.replace(lock, **parts)


def test_the_file_is_the_same_for_the_same_lock_and_is_read_back() -> None:
    data = encode_lock(LOCK)
    assert data == encode_lock(read_lock(data, "deploy.lock"))
    assert read_lock(data, "deploy.lock") == LOCK


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"version": 2}', "$.version"),
        (encode_lock(LOCK).replace(b'"image"', b'"picture"'), "`picture` - at `$.machine`"),
        (b"<<<<<<< HEAD", "malformed"),
    ],
)
def test_a_file_that_is_not_understood_is_refused_with_the_place_and_a_way_out(data: bytes, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_lock(data, "deploy.lock")
    assert says in (caught.value.why or "")
    assert "--upgrade" in (caught.value.next_command or "")


def test_what_the_spec_leaves_open_is_filled_in() -> None:
    found = pinned(spec(), LOCK, None, MODEL)
    assert (found.image, found.model, found.constraints) == ("ami-0123456789", f"{MODEL}@{COMMIT}", ("torch==2.11.0",))
    assert found.api_model_name == spec().api_model_name


def test_what_the_spec_says_itself_wins() -> None:
    asked = spec(image="ami-mine", constraints="torch==2.12.0")
    found = pinned(asked, LOCK, None, MODEL)
    assert (found.image, found.constraints) == ("ami-mine", ("torch==2.12.0",))


def test_another_model_is_not_pinned_to_the_commit_of_the_first_and_is_named() -> None:
    asked = spec(model="hf:Qwen/Qwen2.5-1.5B-Instruct")
    assert pinned(asked, LOCK, None, asked.model).model == asked.model
    assert [str(item) for item in outdated(LOCK, asked, asked.model)] == [f"model: {MODEL} → {asked.model}"]


@pytest.mark.parametrize("other", [{"region": "us-east-1"}, {"instance_type": "g6e.xlarge"}, {"cloud": "alicloud"}])
def test_another_place_or_type_does_not_get_the_image(other: dict[str, str]) -> None:
    asked = spec(**({"region": None, **other} if "cloud" in other else other))
    assert pinned(asked, LOCK, None, asked.model).image is None
    assert "machine" in [item.field for item in outdated(LOCK, asked, asked.model)]


def test_this_machine_keeps_the_packages_that_it_has() -> None:
    lock = build(LOCK, machine=Machine(cloud="local"))
    found = pinned(spec(cloud="local", region=None), lock, None, MODEL)
    assert (found.constraints, found.model) == ((), f"{MODEL}@{COMMIT}")


def test_a_deployment_that_is_as_asked_is_not_changed_by_its_lock() -> None:
    assert pinned(spec(), LOCK, spec(), MODEL) == spec()


def test_a_deployment_that_was_built_from_the_lock_is_not_changed_by_it_again() -> None:
    before = pinned(spec(), LOCK, None, MODEL)
    assert pinned(spec(), LOCK, before, MODEL) == before


def test_a_change_of_something_else_keeps_the_model_where_it_is() -> None:
    found = pinned(spec(max_model_len=2048), LOCK, spec(), MODEL)
    assert (found.model, found.max_model_len) == (f"{MODEL}@{COMMIT}", 2048)


def test_what_was_filled_in_is_taken_out_of_a_stored_spec_and_nothing_else() -> None:
    assert opened(pinned(spec(), LOCK, None, MODEL), LOCK) == spec()
    own = spec(image="ami-mine", constraints="torch==2.12.0", model=f"{MODEL}@{NEWER}")
    assert opened(own, LOCK) == own


@pytest.mark.parametrize(
    ("program", "other"),
    [
        (Program(version="0.1.0", wheel="1" * 64), False),
        (Program(version="0.1.0", wheel="2" * 64), True),
        (Program(version="0.1.0"), False),
        (Program(version="0.2.0"), True),
        (Program(version="unknown"), False),
    ],
)
def test_another_deployctl_is_known_by_its_wheel_else_by_its_version(program: Program, other: bool) -> None:
    assert is_other_program(LOCK, program) is other


def test_an_upgrade_takes_the_newest_commit_and_leaves_the_rest_open() -> None:
    before = pinned(spec(), LOCK, None, MODEL)
    found = upgraded(spec(), LOCK, before, NEWER, MODEL)
    assert (found.model, found.image, found.constraints) == (f"{MODEL}@{NEWER}", None, ())


def test_an_upgrade_to_the_same_commit_changes_nothing_that_runs() -> None:
    assert upgraded(spec(), LOCK, spec(), COMMIT, MODEL) == spec()


def test_an_upgrade_shows_what_it_will_change_before_it_asks() -> None:
    shown = [str(item) for item in planned(LOCK, Program(version="0.2.0", wheel="2" * 64), NEWER, MODEL, fresh=True)]
    assert shown == [
        "deployctl.version: 0.1.0 → 0.2.0",
        f"deployctl.wheel: {'1' * 64} → {'2' * 64}",
        f"model.commit: {COMMIT} → {NEWER}",
        "machine.image: ami-0123456789 → the newest when the machine is made",
        "packages.torch: 2.11.0+cu130 → the newest that this version runs on",
    ]


def test_an_upgrade_of_a_machine_that_exists_promises_no_other_image() -> None:
    shown = planned(LOCK, LOCK.deployctl, None, MODEL, fresh=False)
    assert [str(item) for item in shown] == [f"model.commit: {COMMIT} → the hub's newest (unknown here)"]


def test_a_lock_stays_what_it_is_and_what_was_built_otherwise_is_told() -> None:
    now = build(LOCK, machine=msgspec.structs.replace(LOCK.machine, driver="590.10.01"))
    kept, otherwise = merged(LOCK, now, upgrade=False)
    assert kept == LOCK
    assert [str(item) for item in otherwise] == ["machine.driver: 580.95.05 → 590.10.01"]


def test_with_upgrade_the_lock_says_what_was_built() -> None:
    now = build(LOCK, packages=Packages(torch="2.12.0"), model=Model(source=MODEL, commit=NEWER))
    kept, otherwise = merged(LOCK, now, upgrade=True)
    assert (kept, otherwise) == (now, [])
    assert [item.field for item in differences(LOCK, kept)] == ["model.commit", "packages.torch"]


def test_a_part_that_the_spec_has_changed_is_renewed_without_being_asked() -> None:
    now = build(LOCK, model=Model(source="hf:Qwen/Qwen2.5-1.5B-Instruct", commit=NEWER))
    kept, otherwise = merged(LOCK, now, upgrade=False)
    assert kept.model == now.model
    assert otherwise == []


def test_what_was_not_known_is_added_and_what_is_not_known_now_is_not_forgotten() -> None:
    old = build(LOCK, packages=Packages())
    now = build(LOCK, machine=msgspec.structs.replace(LOCK.machine, driver=None))
    kept, otherwise = merged(old, now, upgrade=False)
    assert (kept.packages.torch, kept.machine.driver, otherwise) == ("2.11.0+cu130", "580.95.05", [])


def test_only_a_hubs_commit_can_be_asked_for_again() -> None:
    assert at_commit(spec(model="demo", cloud="local", region=None), COMMIT) is None
    assert at_commit(spec(), "files-0123") is None


class _Hub(BaseHTTPRequestHandler):
    """Knows one branch of one model, as the hub's API answers."""

    def do_GET(self) -> None:
        known = self.path == "/api/models/org/name/revision/main"
        body = json.dumps({"id": "org/name", "sha": NEWER} if known else {"error": "Revision Not Found"}).encode()
        self.send_response(200 if known else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def test_the_newest_commit_is_what_the_hub_says_and_unknown_where_it_does_not() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        here = {"cloud": "local", "region": None, "hub_endpoint": url}
        found = [newest_commit(spec(model=name, **here)) for name in ("hf:org/name", "hf:org/name@v1")]
        server.shutdown()
    assert found == [NEWER, None]
    assert newest_commit(spec(model="hf:org/name", **here)) is None  # nobody answers any more


def test_the_refusal_of_another_version_names_what_to_install() -> None:
    error = other_program(Path("deploy.lock"), LOCK.deployctl, Program(version="0.2.0", wheel="2" * 64))
    assert error.next_command == "pip install deployctl==0.1.0, or deployctl up --upgrade"


def test_upgrade_without_any_lock_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        open_lock(None, None, upgrade=True)
    assert open_lock(None, None) is None


def test_the_lock_file_stands_beside_the_spec_file(tmp_path: Path) -> None:
    found = open_lock(tmp_path / "deploy.yaml", None)
    assert found is not None
    assert (found.path, found.held) == (tmp_path / "deploy.lock", None)


def test_a_damaged_lock_file_is_written_anew_by_upgrade_only(tmp_path: Path) -> None:
    (tmp_path / "deploy.lock").write_text("<<<<<<< HEAD")
    with pytest.raises(UsageError):
        open_lock(tmp_path / "deploy.yaml", None)
    found = open_lock(tmp_path / "deploy.yaml", None, upgrade=True)
    assert found is not None
    assert found.held is None


def test_a_model_folder_is_named_as_seen_from_the_lock_file(tmp_path: Path) -> None:
    found = open_lock(tmp_path / "deploy.yaml", None)
    assert found is not None
    here = spec(cloud="local", region=None, model=str(tmp_path / "models/mine"))
    assert found.source(here) == "models/mine"


class Host(HostTarget):
    """A machine that has said what it runs on; the connection is tested elsewhere."""

    def get(self, key: str) -> bytes | None:
        return msgspec.json.encode(Built(release="r1", torch="2.11.0+cu126", driver="580.95.05"))

    def observe(self) -> Observation:
        return Observation(self.name, "host", "ready", release="r1")


def test_a_host_is_locked_to_wheel_driver_and_torch_but_to_no_image(tmp_path: Path) -> None:
    target = Host(LocalState("chat", tmp_path / "chat"))
    wheel = str(make_small_wheel(tmp_path))
    asked = spec(cloud="host", region=None, host="ops@203.0.113.10", runtime_wheel=wheel)
    first = open_lock(tmp_path / "deploy.yaml", None)
    assert first is not None
    assert first.settle(asked, None, fresh=True) == asked
    first.note(target)
    again = open_lock(tmp_path / "deploy.yaml", None)
    assert again is not None
    assert again.held is not None
    assert again.held.machine == Machine(cloud="host", driver="580.95.05")
    assert again.settle(asked, None, fresh=True).constraints == ("torch==2.11.0",)
    (elsewhere := tmp_path / "other").mkdir()
    other = asked.model_copy(update={"runtime_wheel": str(make_small_wheel(elsewhere, b"newer"))})
    with pytest.raises(UsageError, match="another wheel"):
        again.settle(other, None, fresh=True)


def test_without_word_from_the_machine_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Silent(Host):
        def get(self, key: str) -> bytes | None:
            return None

    found = open_lock(tmp_path / "deploy.yaml", None)
    assert found is not None
    found.settle(spec(cloud="local", region=None), None, fresh=True)
    found.note(Silent(LocalState("chat", tmp_path / "chat")))
    assert not (tmp_path / "deploy.lock").exists()
    assert "does not say what it runs on" in capsys.readouterr().err
