"""`deployctl plan` and `deployctl config`, as a user types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from provision.cli.app import app
from provision.fields import FIELDS

Run = Callable[..., Result]
KEY = "a-key-of-the-users-own-1"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`deployctl …` in an empty folder, without the environment's token."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("COLUMNS", "120")

    def invoke(*words: str) -> Result:
        return CliRunner().invoke(app, list(words), prog_name="deployctl")

    return invoke


def test_the_seed_command_fits_and_can_be_started(run: Run) -> None:
    words = "--cloud alicloud --instance-type ecs.gn7i-4x.16xlarge --model Qwen/QwQ-32B --max-model-len 8192"
    found = run("plan", *words.split())
    assert found.exit_code == 0
    assert "modelscope:Qwen/QwQ-32B on ecs.gn7i-4x.16xlarge (4×A10): fits" in found.stdout
    assert "$5.85/hour, $140.39/day, $46.80 until the TTL" in found.stdout
    assert "next: deployctl up with the same options" in found.stderr


def test_a_type_without_a_known_price_says_so(run: Run) -> None:
    words = "--cloud alicloud --instance-type ecs.ebmgn8v.48xlarge --model Qwen/Qwen3-235B-A22B"
    found = run("plan", *words.split())
    assert found.exit_code == 0
    assert "cost" in found.stdout
    assert "unknown: no price of ecs.ebmgn8v.48xlarge is on file" in found.stdout


def test_json_is_the_whole_of_stdout(run: Run) -> None:
    found = run(
        "plan", "--cloud", "aws", "--instance-type", "g6.48xlarge", "--model", "Qwen/Qwen2.5-7B-Instruct", "--json"
    )
    plan = json.loads(found.stdout)
    assert found.stderr == ""
    assert (plan["fits"], plan["tensor_parallel"], plan["max_model_len"]) == (True, 4, 32768)
    assert plan["cost"]["label"] == "estimate"
    assert plan["not_yet"] == []


def test_a_model_that_does_not_fit_ends_with_4_and_what_would(run: Run) -> None:
    found = run("plan", "--cloud", "aws", "--instance-type", "g5.xlarge", "--model", "Qwen/QwQ-32B")
    assert found.exit_code == 4
    assert "does not fit" in found.stdout
    assert "g6.12xlarge" in found.stdout


def test_a_model_that_does_not_fit_this_machine_points_to_a_cloud(run: Run) -> None:
    found = run("plan", "--model", "Qwen/Qwen3-235B-A22B")
    assert found.exit_code == 4
    assert "deployctl plan --cloud aws --model Qwen/Qwen3-235B-A22B" in found.stderr


def test_plan_reads_deploy_yaml_of_the_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "deploy.yaml").write_text("cloud: aws\nmodel: Qwen/Qwen2.5-7B-Instruct\ninstance_type: g6.xlarge\n")
    found = run("plan", "--json", "--max-num-seqs", "16")
    plan = json.loads(found.stdout)
    assert (plan["instance_type"], plan["max_num_seqs"]) == ("g6.xlarge", 16)


def test_a_wrong_spec_ends_with_3_and_every_problem(run: Run) -> None:
    found = run("plan", "--cloud", "awss", "--dtype", "bf16", "--max-model-len", "x")
    assert found.exit_code == 13
    for text in ("3 errors", "cloud (flag --cloud)", "'bfloat16'", "max_model_len"):
        assert text in found.stderr
    assert found.stdout == ""


def test_a_wrong_spec_is_json_too(run: Run) -> None:
    found = run("plan", "--dtype", "bf16", "--json")
    error = json.loads(found.stdout)["error"]
    assert error["exit_code"] == 13
    assert "bfloat16" in error["why"]


def test_a_host_that_does_not_answer_is_not_planned(run: Run) -> None:
    found = run("plan", "--host", "me@127.0.0.1:1")
    assert found.exit_code == 21


def test_every_field_of_the_spec_has_its_flag(run: Run) -> None:
    found = run("plan", "--help")
    assert [field.flag for field in FIELDS if field.flag not in found.stdout] == []


def test_lists_repeat_and_take_commas(run: Run) -> None:
    found = run(
        "config", "show", "--cloud", "aws", "--zones", "us-east-1a,us-east-1b", "--zones", "us-east-1c", "--json"
    )
    assert json.loads(found.stdout)["zones"]["value"] == ["us-east-1a", "us-east-1b", "us-east-1c"]


def test_config_show_says_where_each_value_came_from(run: Run, tmp_path: Path) -> None:
    (tmp_path / "deploy.yaml").write_text("port: 9000\n")
    found = run("config", "show", "--max-model-len", "4096")
    rows = [line.split() for line in found.stdout.splitlines()]
    assert ["max_model_len", "4096", "flag", "--max-model-len"] in rows
    assert ["port", "9000", "deploy.yaml:1"] in rows


def test_config_show_reads_a_pulumi_stack_and_leaves_encrypted_values_to_pulumi(run: Run, tmp_path: Path) -> None:
    text = "config:\n  aws:region: us-east-1\n  deployctl:port: 9001\n  deployctl:api_key:\n    secure: v1:abc\n"
    (tmp_path / "Pulumi.dev.yaml").write_text(text)
    shown = json.loads(run("config", "show", "--stack", "dev", "--json").stdout)
    assert shown["port"] == {"value": 9001, "origin": "Pulumi config deployctl:port", "kind": "pulumi"}
    assert shown["api_key"]["value"] is None


def test_a_stack_without_a_file_is_named(run: Run) -> None:
    found = run("config", "show", "--stack", "prod")
    assert found.exit_code == 13
    assert "Pulumi.prod.yaml: there is no such file" in found.stderr


def test_config_show_all_has_every_field(run: Run) -> None:
    found = run("config", "show", "--all")
    assert [line.split()[0] for line in found.stdout.splitlines()] == list(
        json.loads(run("config", "show", "--json").stdout)
    )


def test_config_show_never_prints_a_secret(run: Run) -> None:
    for words in (("config", "show"), ("config", "show", "--json")):
        found = run(*words, "--api-key", KEY)
        assert "********" in found.stdout
        assert KEY not in found.output


def test_config_schema_is_a_schema_of_deploy_yaml(run: Run) -> None:
    schema = json.loads(run("config", "schema").stdout)
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {field.name for field in FIELDS}
    assert schema["properties"]["cloud"]["enum"] == ["local", "host", "aws", "alicloud"]


def test_the_schema_admits_what_yaml_may_hold(run: Run) -> None:
    properties = json.loads(run("config", "schema").stdout)["properties"]
    kinds = {item["type"] for item in properties["instance_type"]["anyOf"]}
    assert kinds == {"array", "string"}
