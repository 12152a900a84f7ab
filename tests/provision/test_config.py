"""Where values come from, and which source wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.config import find_file, read_file, resolve
from provision.spec import SpecError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "deploy.yaml"
    path.write_text("# mine\nname: from-file\nmodel: Qwen/QwQ-32B\n\nmax_model_len: 4096\nport: 9000\n")
    return path


def test_flags_win_over_the_file_the_file_over_pulumi_and_pulumi_over_defaults(file: Path) -> None:
    pulumi = {"deployctl:port": "9001", "deployctl:dtype": "bfloat16"}
    found = resolve({"max_model_len": "8192"}, file, pulumi, env={})
    spec = found.spec
    assert (spec.max_model_len, spec.port, spec.dtype, spec.max_num_seqs) == (8192, 9000, "bfloat16", None)


def test_the_origin_of_each_value_is_known(file: Path) -> None:
    found = resolve({"max_model_len": "8192"}, file, {"deployctl:dtype": "bfloat16"}, env={})
    origins = {name: str(origin) for name, origin in found.origins.items()}
    assert origins["max_model_len"] == "flag --max-model-len"
    assert origins["port"] == "deploy.yaml:6"
    assert origins["dtype"] == "Pulumi config deployctl:dtype"
    assert origins["zones"] == "default"


def test_defaults_that_the_cloud_brings_say_so() -> None:
    found = resolve({"cloud": "aws"}, env={})
    assert str(found.origins["region"]) == "default (aws)"
    assert str(found.origins["ttl"]) == "default (aws)"


def test_every_field_has_an_origin() -> None:
    found = resolve({}, env={})
    assert set(found.origins) == set(type(found.spec).model_fields)


def test_problems_name_the_place_they_were_read_from(tmp_path: Path) -> None:
    path = tmp_path / "deploy.yaml"
    path.write_text("name: ok\nprot: 8000\n")
    with pytest.raises(SpecError) as caught:
        resolve({"dtype": "bf16"}, path, {"deployctl:cloud": "awss"}, env={})
    assert [(item.path, item.where) for item in caught.value.problems] == [
        ("prot", "deploy.yaml:2"),
        ("cloud", "Pulumi config deployctl:cloud"),
        ("dtype", "flag --dtype"),
    ]


def test_the_hub_token_may_come_from_the_environment() -> None:
    found = resolve({"model": "a/b"}, env={"HF_TOKEN": "hf_secret"})
    assert found.spec.hub_token is not None
    assert found.spec.hub_token.get_secret_value() == "hf_secret"
    assert str(found.origins["hub_token"]) == "environment HF_TOKEN"


def test_the_environment_does_not_disturb_a_model_that_needs_no_hub() -> None:
    assert resolve({}, env={"HF_TOKEN": "hf_secret"}).spec.hub_token is None


def test_secrets_are_hidden_when_shown() -> None:
    found = resolve({"model": "a/b", "hub_token": "hf_secret"}, env={})
    assert found.shown("hub_token") == "********"
    assert found.shown_json("hub_token") == "********"


def test_flags_that_were_not_given_do_not_count(file: Path) -> None:
    assert resolve({"port": None, "zones": []}, file, env={}).spec.port == 9000


def test_a_key_without_a_value_in_the_file_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "deploy.yaml"
    path.write_text("port:\nname: x1\n")
    found = resolve({}, path, env={})
    assert found.spec.port == 8000
    assert str(found.origins["port"]) == "default"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [1", "not valid YAML"),
        ("- a\n- b\n", "keys and values"),
        ("port: 1\nport: 2\n", "set twice, first in line 1"),
        ("name: !!python/object:os.system x\n", "not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "deploy.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        read_file(path)
    assert reason in str(caught.value.problems[0])


def test_a_missing_file_names_its_neighbour(tmp_path: Path, file: Path) -> None:
    with pytest.raises(SpecError) as caught:
        resolve({}, tmp_path / "deploy.yml", env={})
    assert caught.value.problems[0].nearest == "deploy.yaml"


def test_an_empty_file_is_an_empty_spec(tmp_path: Path) -> None:
    path = tmp_path / "deploy.yaml"
    path.write_text("# nothing yet\n")
    assert read_file(path) == {}


def test_deploy_yaml_of_the_folder_is_read_when_none_is_named(tmp_path: Path, file: Path) -> None:
    assert find_file(None, tmp_path) == file
    assert find_file(None, tmp_path / "elsewhere") is None
    assert find_file(Path("other.yaml"), tmp_path) == Path("other.yaml")
