"""A host that two laptops change: both copies follow the machine. SSH itself is left out; tests/e2e has all of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from provision import audit
from provision.errors import UsageError
from provision.host import HostRecord, HostTarget
from provision.host_agreement import agree
from provision.keys import digest
from provision.render import stored_spec
from provision.spec import parse
from provision.state import LocalState
from runtime.deployment import ApiKey, encode
from runtime.mailbox import CURRENT, KEYS, Current, FolderMailbox, release_key, spec_key

SECRET = "sk-of-the-deployment"
VALUES = {"name": "box", "cloud": "host", "model": "Qwen/Qwen2.5-7B-Instruct"}


class Near(HostTarget):
    """One whose machine's mailbox is a folder here."""

    spool: FolderMailbox

    def get(self, key: str) -> bytes | None:
        return self.spool.get(key)


@dataclass(frozen=True, slots=True)
class Machine:
    """The spool of a host, and laptops with folders of their own."""

    root: Path

    @property
    def spool(self) -> FolderMailbox:
        return FolderMailbox(self.root / "spool")

    def laptop(self, name: str, said: list[str] | None = None) -> Near:
        target = Near(LocalState("box", self.root / name), (said if said is not None else []).append)
        target.spool = self.spool
        if not target.record_file.exists():
            target.write_record(HostRecord(user=name, address="203.0.113.10", port=22, host_key="ssh-ed25519 A"))
        return target

    def order(self, release: str, user: str, keys: tuple[ApiKey, ...] = (), **values: object) -> None:
        """What an `up` of that laptop leaves on the machine."""
        spec = parse({**VALUES, "host": f"{user}@203.0.113.10", **values})
        audit.tell(self.spool.put, f"deployctl redeploy box of {user}")
        self.spool.put(KEYS, encode([ApiKey(name="default", sha256=digest(SECRET)), *keys]))
        self.spool.put(spec_key(release), stored_spec(spec))
        self.spool.put(release_key(release), b"{}")
        self.spool.put(CURRENT, encode(Current(release=release, deployment=release_key(release))))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One release, known on laptop ada."""
    machine = Machine(tmp_path)
    machine.order("r1", "ada")
    ada = machine.laptop("ada")
    ada.state.write_api_key(SECRET)
    agree(ada)
    return machine


def test_release_spec_and_keys_of_another_laptop_are_taken_over_with_a_word_about_each(machine: Machine) -> None:
    said: list[str] = []
    ada, alice = machine.laptop("ada", said), ApiKey(name="alice", sha256="a" * 64)
    machine.order("r2", "bob", (alice,), max_model_len=4096)
    agree(ada)
    assert "deployctl redeploy box of bob" in said[0]
    assert "  max_model_len: (default) → 4096" in said
    current, values = ada.state.current(), ada.state.spec_values()
    assert current is not None
    assert values is not None
    assert (current.release, values["max_model_len"], values["host"]) == ("r2", 4096, "ada@203.0.113.10")
    assert alice in ada.state.api_keys()
    assert ada.state.spec_values("r2") == values


def test_what_both_know_is_left_as_it_is(machine: Machine) -> None:
    said: list[str] = []
    agree(machine.laptop("ada", said))
    assert said == []


@pytest.mark.parametrize("known", [None, "sk-from-before-the-rotation"])
def test_a_laptop_without_the_key_is_told_who_has_it_and_changes_nothing(machine: Machine, known: str | None) -> None:
    eve = machine.laptop("eve")
    if known is not None:
        eve.state.write_api_key(known)
    with pytest.raises(UsageError, match="is not let in there") as caught:
        agree(eve)
    assert "deployctl redeploy box of ada" in (caught.value.why or "")
    assert "--api-key" in (caught.value.next_command or "")
    assert eve.state.current() is None


def test_a_key_of_ones_own_takes_the_deployment_over(machine: Machine) -> None:
    eve = machine.laptop("eve")
    agree(eve, api_key="sk-of-eve", host="eve@203.0.113.10")
    current, values = eve.state.current(), eve.state.spec_values()
    assert current is not None
    assert values is not None
    assert (current.release, values["host"]) == ("r1", "eve@203.0.113.10")


def test_a_machine_that_has_nothing_is_agreed_with(tmp_path: Path) -> None:
    agree(Machine(tmp_path).laptop("ada"))
