"""`pulumi up` as a program: how it reads the stack's config, and what it says when something is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.spec import SpecError
from provision.stack_settings import Placement
from stacks.order import plan_to_start, read_config
from tests.lab.aws_stack import AwsStack, aws_account, make_stack
from tests.lab.program_hosts import ProcessHost


def environment(**config: str) -> dict[str, str]:
    keys = {f"deployctl:{name}": value for name, value in config.items()}
    return {"PULUMI_STACK": "acme/deployctl/demo", "PULUMI_CONFIG": json.dumps({**keys, "aws:region": "us-east-1"})}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[AwsStack]:
    with aws_account():
        yield make_stack(tmp_path)


def test_the_stack_name_is_the_deployment_name() -> None:
    spec, _ = read_config(environment(model="hf:Qwen/Qwen3-32B", cloud="aws", instance_type="g6e.12xlarge"))
    assert (spec.name, spec.cloud, spec.instance_type) == ("demo", "aws", ("g6e.12xlarge",))


def test_settings_stand_beside_the_spec() -> None:
    spec, settings = read_config(
        environment(cloud="aws", expires_at="1800000000", placement="g5.xlarge/us-east-1b", weights_disk="vol-1")
    )
    assert spec.cloud == "aws"
    assert settings.expires_at == 1_800_000_000
    assert settings.placement == Placement("g5.xlarge", "us-east-1b")
    assert settings.weights_disk == "vol-1"


def test_a_misspelt_key_is_an_error_that_names_it() -> None:
    with pytest.raises(SpecError, match="modle"):
        read_config(environment(cloud="aws", modle="demo"))


def test_errors_of_spec_and_settings_come_all_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        read_config(environment(cloud="aws", dtype="bf16", port="0", expires_at="soon", placement="g5.xlarge"))
    assert {problem.path for problem in caught.value.problems} == {"dtype", "port", "expires_at", "placement"}


@pytest.mark.parametrize("config", [{}, {"cloud": "local"}, {"cloud": "host", "host": "me@there"}])
def test_only_clouds_have_resources_for_pulumi(config: dict[str, str]) -> None:
    with pytest.raises(SpecError, match="cloud"):
        read_config(environment(**config))


def test_the_plan_is_made_for_the_type_that_was_placed() -> None:
    spec, settings = read_config(
        environment(cloud="aws", model="hf:Qwen/Qwen2.5-7B-Instruct", instance_type="g5.xlarge,g6e.xlarge",
                    placement="g6e.xlarge/us-east-1a")
    )  # fmt: skip
    assert plan_to_start(spec, settings).instance_type == "g6e.xlarge"


def test_a_wrong_config_ends_the_program_with_every_reason_and_no_traceback(stack: AwsStack) -> None:
    stack.engine.host = ProcessHost()
    stack.configure(dtype="bf16", modle="demo")
    said = stack.refused()
    assert "'bfloat16'" in said
    assert "modle (Pulumi config deployctl:modle): is not a field of the spec. Did you mean 'model'?" in said
    assert "next: " in said


def test_a_model_that_does_not_fit_ends_the_program_with_what_would(stack: AwsStack) -> None:
    stack.configure(model="hf:Qwen/Qwen3-32B")
    said = stack.refused()
    assert "does not fit g5.xlarge" in said
    assert "would fit" in said


def test_a_type_that_no_zone_sells_ends_the_program_before_anything_is_made(stack: AwsStack) -> None:
    stack.configure(instance_type="g6e.xlarge")
    assert "sold in no zone" in stack.refused()
    assert stack.ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["false"]}])["Vpcs"] == []


def test_a_missing_wheel_is_named(stack: AwsStack) -> None:
    stack.configure(runtime_wheel="nowhere/deployctl-0.1.0-py3-none-any.whl")
    assert "nowhere/deployctl-0.1.0-py3-none-any.whl does not exist" in stack.refused()


def test_paths_in_the_config_start_from_the_projects_folder(stack: AwsStack) -> None:
    """The program itself runs in a folder below it."""
    stack.configure(ssh_public_key="tests/lab/no-such-key.pub")
    root = Path(__file__).resolve().parents[2]
    assert f"{root}/tests/lab/no-such-key.pub cannot be read" in stack.refused()


@pytest.mark.slow
def test_a_stack_that_exists_stays_in_its_region_and_loses_nothing_by_the_attempt(stack: AwsStack) -> None:
    stack.up()
    before = stack.instance()["InstanceId"]
    stack.configure(region="us-east-1")
    assert "the region of " in (said := stack.failed())
    assert "cannot change: `deployctl down " in said
    assert stack.instance()["InstanceId"] == before
    assert stack.engine.run.names("delete") == []
