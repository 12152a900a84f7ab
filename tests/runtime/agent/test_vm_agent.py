"""The agent of a VM under the local supervisor in place of systemd: real pip and environments, a mailbox that can fail.

The whole VM, with systemd, cloud-init and an object store, is in tests/e2e.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from agent_machine import Machine, a_deployment, make_model_folder, wait_for
from local_hub import REPO, Hub
from tiny_wheels import make_runtime_wheel, make_torch_wheel, make_wheel, push_bundle, sha256

from runtime.deployment import Setup, encode
from runtime.mailbox import CURRENT, IDENTITY, KEYS, Current, Status, decode_identity, release_key, wheel_key

DEADLINE_S = 60.0  # pip and two busy cores


class Vm(Machine):
    """The user's side of a cloud deployment: its releases bring wheels."""

    def deploy_wheel(
        self, release: str, version: str, served_name: str = "ok", sha: str | None = None, hub: Hub | None = None
    ) -> None:
        """On the port that the supervisor has. `sha`: another digest than the wheel's. `hub`: has the model."""
        record = self.record()
        assert record is not None
        deployment = a_deployment(release, str(self.model), served_name=served_name)
        if hub is not None:
            source = f"hf:{REPO}"
            deployment = a_deployment(release, source, served_name=served_name, hub_endpoint=hub.endpoint)
        listen = msgspec.structs.replace(deployment.listen, port=record.port)
        deployment = msgspec.structs.replace(deployment, listen=listen, setup=Setup(egress="bundle"))
        self.mailbox.put(release_key(release), encode(deployment))
        wheel = make_runtime_wheel(self.root / "wheels", version)
        key = wheel_key(release, wheel.name)
        self.mailbox.put(key, wheel.read_bytes())
        current = Current(release=release, deployment=release_key(release), wheel=key, sha256=sha or sha256(wheel))
        self.mailbox.put(CURRENT, encode(current))

    def wait_for(self, release: str) -> Status:
        wanted = (release, "ready", None)
        return self.wait_status(lambda s: (s.release, s.phase, s.error) == wanted, f"{release} is ready", DEADLINE_S)

    def venv_of(self, link: str) -> Path:
        return (self.state / link).resolve()

    @property
    def away(self) -> Path:
        return self.mailbox.root / "AWAY"


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    """One machine for all tests here, because environments take seconds; it is ready with some release before each."""
    root = tmp_path_factory.mktemp("vm")
    vm = Vm(root, make_model_folder(root / "model"), {"SCRIPTED_VM": "1"})
    push_bundle(vm.mailbox, [make_wheel(root / "wheels", "tiny-server", "1.0"), make_torch_wheel(root / "wheels")])
    vm.start()
    vm.deploy_wheel("r1", "1.0")
    vm.wait_for("r1")
    yield vm
    assert vm.process is not None
    vm.process.kill()
    vm.process.wait()


@pytest.mark.slow
def test_a_release_runs_on_the_environment_of_its_wheel_and_so_does_the_agent(vm: Vm) -> None:
    venv = vm.venv_of("current/venv")
    assert venv.parent == (vm.state / "venvs").resolve()
    wait_for(lambda: vm.venv_of("agent") == venv, "the agent's link")


def test_the_machine_tells_who_it_is(vm: Vm) -> None:
    data = wait_for(lambda: vm.mailbox.get(IDENTITY), "an identity")
    assert decode_identity(data).instance_id == "i-1"
    status = vm.status()
    assert status is not None
    assert status.instance_id == "i-1"


def test_new_keys_reach_the_server_without_a_restart(vm: Vm) -> None:
    server = vm.pid("server")
    keys = json.dumps([{"name": "k", "sha256": "0" * 64}]).encode()
    vm.mailbox.put(KEYS, keys)
    copy = vm.state / "run" / "keys.json"
    wait_for(lambda: copy.exists() and copy.read_bytes() == keys, "the server's copy")
    assert vm.pid("server") == server


def test_a_wheel_with_a_wrong_digest_is_told_and_the_release_before_goes_on(vm: Vm) -> None:
    before = vm.status()
    assert before is not None
    engine = vm.pid("engine")
    vm.deploy_wheel("wrong", "1.1", sha="0" * 64)
    status = vm.wait_status(lambda s: s.error is not None, "an error", DEADLINE_S)
    assert (status.release, status.phase) == (before.release, "ready")
    assert "release wrong failed in phase python" in (status.error or "")
    assert vm.pid("engine") == engine
    vm.deploy_wheel("after-wrong", "1.0")
    vm.wait_for("after-wrong")


def test_while_the_mailbox_is_away_all_goes_on_and_a_release_made_meanwhile_comes_after(vm: Vm) -> None:
    agent, engine = vm.pid("agent"), vm.pid("engine")
    vm.away.touch()
    try:
        vm.deploy_wheel("made-meanwhile", "1.0")
        wait_for(lambda: vm.log("agent").count("the mailbox cannot be reached") > 0, "a word about it")
        assert vm.get("/health")[0] == 200
        assert (vm.pid("agent"), vm.pid("engine")) == (agent, engine)
    finally:
        vm.away.unlink()
    vm.wait_for("made-meanwhile")
    assert vm.pid("agent") == agent


def test_an_agent_that_starts_while_the_mailbox_is_away_brings_the_release_up(vm: Vm) -> None:
    before = vm.status()
    assert before is not None
    vm.away.touch()
    try:
        for unit in ("engine", "server"):
            vm.units.stop(unit)
        old = vm.pid("agent")
        os.kill(old, 9)
        wait_for(lambda: vm.units.state("agent").pid not in (None, old), "a new agent")
        wait_for(lambda: vm.units.state("server").pid and vm.get("/health")[0] == 200, "it answers", DEADLINE_S)
    finally:
        vm.away.unlink()
    vm.wait_for(before.release)


def test_after_a_boot_in_the_middle_of_a_redeploy_the_release_before_serves_until_the_new_one_can(vm: Vm) -> None:
    with Hub(dict.fromkeys(("config.json", "tokenizer.json", "model.safetensors"), b"{}"), frozen=True) as hub:
        vm.deploy_wheel("comes-slowly", "1.0", hub=hub)
        vm.wait_status(lambda s: (s.release, s.phase) == ("comes-slowly", "weights"), "its weights", DEADLINE_S)
        for unit in ("engine", "server"):
            vm.units.stop(unit)
        os.kill(vm.pid("agent"), 9)
        wait_for(lambda: vm.units.state("server").pid and vm.get("/health")[0] == 200, "it answers", DEADLINE_S)
        status = vm.status()
        assert status is not None
        assert (status.release, status.phase, status.error) == ("comes-slowly", "weights", None)
        assert vm.units.state("engine").release != "comes-slowly"
        hub.frozen = False
        hub.thaw.set()
        vm.wait_for("comes-slowly")
        assert vm.units.state("engine").release == "comes-slowly"


def test_with_a_new_wheel_the_release_is_served_first_and_then_the_agent_starts_again_on_it(vm: Vm) -> None:
    vm.deploy_wheel("with-new-wheel", "2.0")
    old, agent = vm.venv_of("agent"), vm.pid("agent")
    vm.wait_for("with-new-wheel")
    venv = vm.venv_of("current/venv")
    assert venv != old
    wait_for(lambda: vm.venv_of("agent") == venv, "the agent's link")
    wait_for(lambda: vm.units.state("agent").pid not in (None, agent), "a new agent")
    assert vm.get("/health")[0] == 200


@pytest.mark.slow
def test_a_new_wheel_that_does_not_serve_is_rolled_back_with_its_environment(vm: Vm) -> None:
    before = vm.status()
    assert before is not None
    venv, agent = vm.venv_of("current/venv"), vm.venv_of("agent")
    vm.deploy_wheel("does-not-serve", "3.0", served_name="refuse")
    status = vm.wait_status(lambda s: s.phase == "ready" and s.error is not None, "the way back", DEADLINE_S)
    assert status.release == before.release
    assert "does-not-serve failed in phase load" in (status.error or "")
    assert (vm.venv_of("current/venv"), vm.venv_of("agent")) == (venv, agent)
    assert vm.get("/health")[0] == 200
