"""Two laptops and one stack: neither takes back what the other has changed; real Automation API, stand-in pulumi."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from provision import backend as backends
from provision.agreement import Agreed, asked_text, decide, note_agreed, read_agreed
from provision.automation import Project
from provision.cloud import CloudTarget
from provision.errors import UsageError
from provision.power import extend_life
from provision.rollout import bring_up
from provision.spec import parse

# What the real program exports about its config; the whole of it is held by tests/stacks.
PROGRAM = """
    import os, pulumi
    from stacks.order import asked, read_config
    spec, settings = read_config(os.environ)
    pulumi.export("asked", asked(os.environ))
    pulumi.export("expires_at", settings.expires_at)
    pulumi.export("instance_id", "i-1")
    pulumi.export("instance_type", "g5.xlarge")
    pulumi.export("zone", "us-east-1a")
"""
VALUES = {"name": "chat", "cloud": "aws", "model": "Qwen/Qwen2.5-7B-Instruct", "instance_type": "g5.xlarge"}


@dataclass(frozen=True, slots=True)
class Laptop:
    """One that shares the backend with the other."""

    command: Path
    folder: Path
    said: list[str] = field(default_factory=list)

    def target(self) -> CloudTarget:
        """As a new command finds it."""
        backend = backends.choose_backend(os.environ)
        backends.prepare(backend)
        return CloudTarget(Project(self.command, backend, self.folder, self.said.append).open_or_create("chat"))

    def up(self, **changes: Any) -> None:
        """`deployctl up` with a spec of its own."""
        target = self.target()
        target.agree()
        settings = target.settings
        if settings.expires_at is None:
            settings = type(settings)(expires_at=int(time.time()) + 36_000)
        bring_up(target, parse({**VALUES, **changes}), settings, self.said.append)

    def extend(self) -> int:
        return extend_life(self.target(), 3600, self.said.append, time.time())

    def config(self) -> dict[str, str]:
        return dict(self.target().config)

    def edit(self, **values: str) -> None:
        """`pulumi config set`."""
        self.target().stack.set_config({f"deployctl:{name}": value for name, value in values.items()}, secret={})


@pytest.fixture
def laptops(pulumi: Path, program: Callable[[str], Path]) -> tuple[Laptop, Laptop]:
    """The first has made the deployment, the second has looked at it."""
    one = Laptop(pulumi, program(PROGRAM))
    one.up()
    other = one.folder.with_name("other")
    shutil.copytree(one.folder, other)
    (other / "Pulumi.chat.yaml").unlink()
    two = Laptop(pulumi, other)
    two.extend()
    one.extend()
    return one, two


@pytest.mark.slow
def test_what_one_laptop_has_changed_counts_on_the_other_which_knew_it_before(laptops: tuple[Laptop, Laptop]) -> None:
    one, two = laptops
    one.up(max_model_len=4096)
    moved = one.extend()
    later = two.extend()
    assert later == moved + 3600
    config = two.config()
    assert config["deployctl:max_model_len"] == "4096"
    assert config["deployctl:placement"] == "g5.xlarge/us-east-1a"
    assert any("max_model_len: 4096 there, not set here" in line for line in two.said)


@pytest.mark.slow
def test_what_the_user_has_edited_here_counts_while_nobody_else_has_changed_anything(
    laptops: tuple[Laptop, Laptop],
) -> None:
    one, _ = laptops
    one.edit(max_model_len="2048")
    one.extend()
    assert one.config()["deployctl:max_model_len"] == "2048"


@pytest.mark.slow
def test_what_both_have_changed_is_refused_with_the_differences_and_both_ways_on(
    laptops: tuple[Laptop, Laptop],
) -> None:
    one, two = laptops
    one.up(max_model_len=4096)
    two.edit(max_model_len="2048")
    with pytest.raises(UsageError, match="not what its last update was asked") as caught:
        two.extend()
    assert "max_model_len: 4096 there, 2048 here" in (caught.value.why or "")
    command = caught.value.next_command or ""
    assert command.startswith(f"rm {two.folder / 'Pulumi.chat.yaml'},")
    (two.folder / "Pulumi.chat.yaml").unlink()
    two.extend()
    assert two.config()["deployctl:max_model_len"] == "4096"


HERE, THERE, OLD = (asked_text({"deployctl:ttl": text}) for text in ("4h", "8h", "1h"))


def agreed(tmp_path: Path, here: str, there: str) -> Agreed | None:
    note_agreed(tmp_path / "agreed.json", here, there)
    return read_agreed(tmp_path / "agreed.json")


@pytest.mark.parametrize(
    ("there", "known", "counts"),
    [
        (None, None, "here"),
        (HERE, None, "same"),
        (THERE, None, "nobody knows"),
        (THERE, (OLD, THERE), "here"),
        (THERE, (HERE, OLD), "there"),
        (THERE, (OLD, OLD), "nobody knows"),
    ],
)
def test_whose_config_counts(tmp_path: Path, there: str | None, known: tuple[str, str] | None, counts: str) -> None:
    assert decide(HERE, there, agreed(tmp_path, *known) if known else None) == counts


def test_secrets_are_compared_by_their_digest_and_keys_not_at_all() -> None:
    text = asked_text(
        {"deployctl:api_key": "sk-secret", "deployctl:keys": "[]", "other:ttl": "1h", "deployctl:ttl": "2h"}
    )
    assert "sk-secret" not in text
    assert '"ttl":"2h"' in text
    assert "keys" not in text
    assert text != asked_text({"deployctl:api_key": "sk-another", "deployctl:ttl": "2h"})
