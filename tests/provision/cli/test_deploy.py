"""What `up` and `redeploy` decide before anything is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from provision.cli.ask import confirm
from provision.cli.deploy import change, differences
from provision.cli.redeploy import changed_spec
from provision.cli.spec_flags import Given
from provision.cli.up import wanted_spec
from provision.errors import UsageError
from provision.local import LocalTarget
from provision.spec import parse
from provision.state import open_state


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def target() -> LocalTarget:
    """A deployment that was asked for with a port and a limit."""
    state = open_state("chat")
    state.write_api_key("sk-of-this-test-0123456789")
    spec = {"name": "chat", "port": 8111, "max_model_len": 2048}
    state.spec_file.write_text(json.dumps(spec))
    return LocalTarget(state)


def given(**flags: object) -> Given:
    return Given(flags, None)


@pytest.mark.usefixtures("target")
def test_up_without_options_takes_up_what_there_is() -> None:
    assert wanted_spec(given(), None).max_model_len == 2048
    assert wanted_spec(given(), "chat").port == 8111


@pytest.mark.usefixtures("target")
def test_up_with_options_means_what_they_say_and_nothing_from_before() -> None:
    spec = wanted_spec(given(max_num_seqs="4"), "chat")
    assert (spec.name, spec.max_num_seqs, spec.max_model_len, spec.port) == ("chat", 4, None, 8000)


@pytest.mark.usefixtures("target")
def test_up_reads_deploy_yaml(home: Path) -> None:
    (home / "deploy.yaml").write_text("name: chat\nmax_model_len: 4096\n")
    assert wanted_spec(given(), None).max_model_len == 4096


def test_up_on_a_fresh_machine_is_the_demo() -> None:
    spec = wanted_spec(given(), None)
    assert (spec.model, spec.cloud) == ("demo", "local")


@pytest.mark.usefixtures("target")
def test_two_different_names_are_refused() -> None:
    with pytest.raises(UsageError, match="chat and code"):
        wanted_spec(given(name="code"), "chat")


def test_redeploy_changes_what_is_named_and_keeps_the_rest(target: LocalTarget) -> None:
    spec = changed_spec(target, given(max_model_len="1024"))
    assert (spec.max_model_len, spec.port) == (1024, 8111)
    assert [str(item) for item in differences(target, spec)] == ["max_model_len: 2048 → 1024"]


def test_redeploy_lays_a_file_over_what_is_stored(target: LocalTarget, home: Path) -> None:
    file = home / "other.yaml"
    file.write_text("max_num_seqs: 2\n")
    spec = changed_spec(target, Given({}, file))
    assert (spec.max_num_seqs, spec.max_model_len) == (2, 2048)


def test_the_same_again_changes_nothing(target: LocalTarget) -> None:
    assert change(target, changed_spec(target, given()), yes=True, command="redeploy") is None


def test_the_port_cannot_change_while_it_runs(target: LocalTarget) -> None:
    with pytest.raises(UsageError, match="port: 8111 → 8112"):
        change(target, changed_spec(target, given(port="8112")), yes=True, command="redeploy")


def test_another_api_key_is_a_change_that_does_not_show_it(target: LocalTarget) -> None:
    key = "sk-another-key-0123456789"
    found = differences(target, changed_spec(target, given(api_key=key)))
    assert [item.field for item in found] == ["api_key"]
    assert key not in str(found[0])
    assert differences(target, changed_spec(target, given(api_key="sk-of-this-test-0123456789"))) == []


def test_without_a_terminal_the_question_names_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/null") as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        with pytest.raises(UsageError) as caught:
            confirm("Start it?", yes=False, command="deployctl up --name chat")
    assert caught.value.next_command == "deployctl up --name chat --yes"


def test_the_folder_of_a_model_is_kept_as_an_absolute_path(home: Path) -> None:
    assert wanted_spec(given(model="./m"), None).model == str(home / "m")
    assert parse({"model": "./m"}).model == "./m"
