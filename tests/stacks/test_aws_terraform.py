"""The graph on AWS passes the schema and the validators of Terraform's AWS provider, where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab.aws_stack import REGION, AwsStack, aws_account, make_stack
from tests.lab.terraform import ReferenceCloud, Terraform

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    found = Terraform(tmp_path_factory.mktemp("terraform"))
    if reason := found.start():
        pytest.skip(reason)
    return found


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[AwsStack]:
    with aws_account():
        made = make_stack(tmp_path)
        cloud = ReferenceCloud(REGION)
        made.engine.providers["aws"] = cloud
        yield replace(made, cloud=cloud)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"weights_disk_gib": "200"}, id="public"),
        pytest.param({"endpoint": "intranet", "allowed_cidrs": ""}, id="intranet"),
        pytest.param({"spot": "true", "ttl": "0"}, id="spot"),
    ],
)
def test_the_provider_accepts_every_resource(stack: AwsStack, terraform: Terraform, config: dict[str, str]) -> None:
    stack.configure(**config)
    assert terraform.validate(stack.up()) == []


def test_the_judge_sees_what_is_wrong(stack: AwsStack, terraform: Terraform) -> None:
    stack.configure(allowed_cidrs="198.51.100.7/32")
    run = stack.up()
    for item in run.of_type("aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule"):
        item.inputs["cidrIpv4"] = "198.51.100.7/99"
    assert any("198.51.100.7/99" in problem for problem in terraform.validate(run))
