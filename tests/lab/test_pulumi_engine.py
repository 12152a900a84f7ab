"""What the test engine promises to the tests that lean on it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.lab.alicloud_cloud import REGION, AlicloudCloud
from tests.lab.alicloud_provider import AlicloudProvider
from tests.lab.program_hosts import ProcessHost, WarmHost
from tests.lab.pulumi_engine import Engine
from tests.lab.pulumi_model import OutsideTheLab, Provider
from tests.lab.pulumi_wire import is_secret
from tests.lab.small_providers import small_providers

PROGRAM = """
    import pulumi, pulumi_random as random
    from pulumi_command import local
    config = pulumi.Config()
    size = config.get_int("size") or 4
    pinned = ["special"] if config.get_bool("pinned") else None
    token = random.RandomPassword("token", length=size, special=config.get_bool("special") or False,
                                  opts=pulumi.ResourceOptions(ignore_changes=pinned))
    first = local.Command("first", create=config.get("command") or "echo one", delete="echo first >> $LOG",
                          environment={"LOG": config.require("log")})
    if config.get_bool("second", True):
        local.Command("second", create=first.stdout.apply(lambda text: f"echo {text}"), delete="echo second >> $LOG",
                      environment={"LOG": config.require("log")},
                      opts=pulumi.ResourceOptions(ignore_changes=["create"] if config.get_bool("pinned") else None,
                                                  protect=config.get_bool("protect") or False))
    pulumi.export("token", token.result)
    pulumi.export("said", first.stdout)
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def engine(tmp_path: Path, log: Path) -> Engine:
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "__main__.py").write_text(textwrap.dedent(PROGRAM))
    return make(folder, {"log": str(log)}, small_providers())


def make(
    folder: Path, config: Mapping[str, str], providers: Mapping[str, Provider], state: Path | None = None
) -> Engine:
    named = {f"deployctl:{key}": value for key, value in config.items()}
    return Engine(providers, folder=folder, config=named, state_file=state, host=WarmHost())


def up(engine: Engine) -> None:
    done = engine.up()
    assert done.succeeded, done.explain()


def test_both_hosts_run_the_same_program_alike(engine: Engine) -> None:
    up(engine)
    engine.host = ProcessHost()
    up(engine)
    assert engine.run.names("same") == ["first", "second", "token"]


def test_a_preview_plans_creates_and_makes_nothing(engine: Engine, log: Path) -> None:
    done = engine.preview()
    assert done.succeeded, done.explain()
    assert done.names("create") == ["first", "second", "token"]
    assert not engine.state
    assert "said" not in done.values or done.values["said"] != "one"


def test_a_second_run_changes_nothing(engine: Engine) -> None:
    up(engine)
    up(engine)
    assert engine.run.names("same") == ["first", "second", "token"]


def test_a_changed_input_updates_and_what_follows_from_it_too(engine: Engine) -> None:
    up(engine)
    engine.config["deployctl:command"] = "echo two"
    up(engine)
    assert engine.run.names("update") == ["first", "second"]
    assert engine.run.values["said"] == "two"


def test_an_input_that_cannot_change_replaces(engine: Engine) -> None:
    up(engine)
    before = engine.run.values["token"]
    engine.config["deployctl:size"] = "8"
    up(engine)
    assert engine.run.names("replace") == ["token"]
    assert len(engine.run.values["token"]) == 8 != len(before)
    assert not engine.condemned


def test_ignored_changes_stay_as_they_were(engine: Engine) -> None:
    engine.config["deployctl:pinned"] = "true"
    up(engine)
    engine.config["deployctl:command"] = "echo two"
    up(engine)
    assert engine.run.names("update") == ["first"]


def test_what_is_replaced_is_made_as_the_program_says_now_ignored_changes_too(engine: Engine) -> None:
    engine.config["deployctl:pinned"] = "true"
    up(engine)
    engine.config |= {"deployctl:special": "true"}
    up(engine)
    assert engine.run.names("replace") == []
    engine.config |= {"deployctl:size": "8"}
    up(engine)
    assert engine.run.names("replace") == ["token"]
    (token,) = (item for item in engine.state.values() if item.name == "token")
    assert token.inputs["special"] is True


def test_destroy_deletes_dependents_first(engine: Engine, log: Path) -> None:
    up(engine)
    done = engine.destroy()
    assert done.succeeded
    assert log.read_text().split() == ["second", "first"]
    assert not engine.state


def test_what_is_no_longer_registered_is_deleted(engine: Engine, log: Path) -> None:
    up(engine)
    engine.config["deployctl:second"] = "false"
    up(engine)
    assert log.read_text().split() == ["second"]


def test_a_protected_resource_stops_a_destroy(engine: Engine) -> None:
    engine.config["deployctl:protect"] = "true"
    up(engine)
    done = engine.destroy()
    assert not done.succeeded
    assert "protected" in done.errors[0]


def test_secret_outputs_carry_their_mark(engine: Engine) -> None:
    up(engine)
    assert is_secret(engine.run.outputs["token"])
    assert not is_secret(engine.run.outputs["said"])


def test_a_failing_resource_fails_the_run_and_keeps_what_was_made(engine: Engine) -> None:
    engine.config["deployctl:command"] = "echo broken >&2; false"
    done = engine.up()
    assert not done.succeeded
    assert "broken" in done.explain()
    assert [item.name for item in engine.state.values() if item.custom] == ["token"]


def test_the_state_file_carries_a_stack_into_another_process(engine: Engine, tmp_path: Path, log: Path) -> None:
    engine.state_file = tmp_path / "state.json"
    up(engine)
    other = make(engine.folder, {"log": str(log)}, small_providers(), engine.state_file)
    up(other)
    assert other.run.names("same") == ["first", "second", "token"]
    assert other.outputs == engine.outputs


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('random.RandomPassword("x", length="4", opts=None)', "length: '4' is not a int"),
        ('pulumi.CustomResource("random:index/randomPassword:RandomPassword", "x", {"size": 4})', "no such property"),
        ('pulumi.CustomResource("random:index/randomPassword:RandomPassword", "x", {})', "length: is required"),
        ('pulumi.CustomResource("random:index/nonsense:Nonsense", "x", {})', "no such type"),
    ],
)
def test_inputs_that_the_sdk_does_not_know_are_refused(engine: Engine, line: str, problem: str) -> None:
    (engine.folder / "__main__.py").write_text(f"import pulumi, pulumi_random as random\n{line}\n")
    done = engine.up()
    assert not done.succeeded
    assert problem in done.explain()


@pytest.mark.parametrize(
    "ask",
    [
        lambda: small_providers()["random"].create("random:index/randomPet:RandomPet", "pet", {}, {}),
        lambda: small_providers()["tls"].invoke("tls:index/getCertificate:getCertificate", {}, {}),
        lambda: AlicloudProvider(AlicloudCloud()).invoke("alicloud:ecs/getDisks:getDisks", {}, {"region": REGION}),
        lambda: AlicloudProvider(AlicloudCloud()).replaces("alicloud:slb/loadBalancer:LoadBalancer"),
    ],
)
def test_what_a_stand_in_does_not_know_is_named_with_the_place_to_add_it(ask: Callable[[], object]) -> None:
    with pytest.raises(OutsideTheLab, match=r"the lab does not know .*; add it to tests/lab/\w+\.py"):
        ask()
