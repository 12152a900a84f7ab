"""What `pulumi up` does in this version: it checks the config, and refuses plainly."""

from __future__ import annotations

import json

import pytest

from provision.errors import NotYetError
from provision.spec import SpecError
from stacks.__main__ import main, read_spec


def environment(**config: str) -> dict[str, str]:
    keys = {f"deployctl:{name}": value for name, value in config.items()}
    return {
        "PULUMI_STACK": "acme/deployctl/demo",
        "PULUMI_CONFIG": json.dumps({**keys, "aws:region": "us-east-1"}),
    }


def test_the_stack_name_is_the_deployment_name() -> None:
    spec = read_spec(environment(model="hf:Qwen/Qwen3-32B", cloud="aws", instance_type="g6e.12xlarge"))
    assert (spec.name, spec.cloud, spec.instance_type) == ("demo", "aws", ("g6e.12xlarge",))


def test_a_misspelt_key_is_an_error_that_names_it() -> None:
    with pytest.raises(SpecError, match="modle"):
        read_spec(environment(modle="demo"))


def test_a_valid_config_is_refused_until_clouds_work() -> None:
    with pytest.raises(NotYetError, match="alicloud"):
        main(environment(cloud="alicloud", instance_type="ecs.gn7i-c32g1.8xlarge", model="hf:Qwen/Qwen3-32B"))
