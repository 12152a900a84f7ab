"""Keys of a deployment on a cloud: in the stack, from any laptop, through the Automation API and a small program."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from provision import backend as backends
from provision.automation import Project
from provision.cloud import CloudTarget
from provision.errors import NotRunningError, UsageError
from provision.key_stores import StackKeys
from provision.keys import add, digest, revoke
from provision.rollout import bring_up
from provision.spec import parse
from runtime.deployment import ApiKey, decode_keys

# What the real program does about keys, without a cloud; the whole of it is held by tests/stacks.
PROGRAM = """
    import os, pulumi
    from provision.stack_settings import keys_text
    from stacks.content import keys_object
    from stacks.once import make_api_key
    from stacks.order import read_config
    spec, settings = read_config(os.environ)
    key = make_api_key(spec, settings, pulumi.ComponentResource("test:index:Root", "root"))
    pulumi.export("api_key", key)
    pulumi.export("keys", keys_text(settings.keys))
    pulumi.export("key_round", settings.key_round)
    pulumi.export("keys_json", pulumi.Output.unsecret(
        key.apply(lambda secret: keys_object(secret, settings.keys).decode())))
    pulumi.export("instance_id", "i-1")
"""
VALUES = {"name": "chat", "cloud": "aws", "model": "Qwen/Qwen2.5-7B-Instruct", "instance_type": "g5.xlarge"}
ALICE = ApiKey(name="alice", sha256=digest("sk-alice"), rpm=60)
OWN_KEY = "a-key-of-the-users-own-1"


@dataclass(frozen=True, slots=True)
class Laptop:
    """A laptop that is logged in to the backend; another one has no config of the stack yet."""

    command: Path
    folder: Path

    def target(self) -> CloudTarget:
        """As a new command finds it."""
        backend = backends.choose_backend(os.environ)
        backends.prepare(backend)
        return CloudTarget(Project(self.command, backend, self.folder, lambda line: None).open_or_create("chat"))

    def store(self) -> StackKeys:
        return StackKeys(self.target(), lambda line: None)

    def up(self, **changes: Any) -> None:
        """`deployctl up`."""
        target, spec = self.target(), parse({**VALUES, **changes})
        bring_up(target, spec, target.settings, lambda line: None)

    def given_to_the_machine(self) -> list[ApiKey]:
        return decode_keys(self.target().stack.outputs()["keys_json"].encode())

    @property
    def config(self) -> Path:
        return self.folder / "Pulumi.chat.yaml"


@pytest.fixture
def laptop(pulumi: Path, program: Callable[[str], Path]) -> Laptop:
    laptop = Laptop(pulumi, program(PROGRAM))
    laptop.up()
    return laptop


@pytest.mark.slow
def test_an_added_key_reaches_the_machine_and_no_later_up_from_whatever_laptop_takes_it_back(laptop: Laptop) -> None:
    before = laptop.config.read_bytes()
    store = laptop.store()
    store.write(add(store.read(), ALICE, time.time()))
    own = laptop.target().exports.api_key or ""
    wanted = [ApiKey(name="default", sha256=digest(own)), ALICE]
    assert laptop.given_to_the_machine() == wanted

    laptop.config.write_bytes(before)  # a laptop that has not heard of it
    assert list(laptop.store().read()) == wanted
    laptop.up(max_model_len=4096)
    assert laptop.given_to_the_machine() == wanted

    store = laptop.store()
    store.write(revoke(store.read(), "alice", time.time()))
    assert [key.name for key in laptop.given_to_the_machine()] == ["default"]
    assert "sk-" not in laptop.config.read_text()


@pytest.mark.slow
def test_a_rotated_key_is_made_by_pulumi_and_stays_while_the_old_one_has_its_grace(laptop: Laptop) -> None:
    old = laptop.target().exports.api_key or ""
    new = laptop.store().renew_default(grace_s=600)
    assert new != old
    laptop.up(max_model_len=4096)
    assert laptop.target().exports.api_key == new
    current, before = laptop.given_to_the_machine()
    assert (current.sha256, current.expires_at, before.sha256) == (digest(new), None, digest(old))
    assert abs((before.expires_at or 0) - time.time() - 600) < 120
    assert new not in laptop.config.read_text()


@pytest.mark.slow
def test_a_key_of_the_users_own_is_not_made_anew(laptop: Laptop) -> None:
    laptop.up(api_key=OWN_KEY)
    with pytest.raises(UsageError, match="is your own"):
        laptop.store().renew_default(grace_s=0)


def test_keys_of_a_machine_that_has_ended_are_not_changed_because_an_update_would_buy_another(laptop: Laptop) -> None:
    store = laptop.store()
    store.target.__dict__["exports"] = msgspec.structs.replace(store.target.exports, expires_at=1)
    with pytest.raises(NotRunningError):
        store.write((*store.read(), ALICE))
