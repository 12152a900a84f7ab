"""No type of resource that the programs can create is unknown to the sweep, and no name that they give."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.sweep import alicloud, aws, covers
from stacks.alicloud import RESOURCE_TYPES as ALICLOUD_TYPES
from stacks.aws import RESOURCE_TYPES as AWS_TYPES

STACKS = Path(__file__).resolve().parents[2] / "stacks"
CASES = [
    pytest.param("aws", covers.AWS, AWS_TYPES, aws.AwsSearch.kinds, id="aws"),
    pytest.param("alicloud", covers.ALICLOUD, ALICLOUD_TYPES, alicloud.AlicloudSearch.kinds, id="alicloud"),
]


def calls(cloud: str) -> Iterator[ast.Call]:
    """Every call in the modules of one cloud's program, data sources' modules left out."""
    for path in sorted(STACKS.glob(f"{cloud}*.py")):
        if not path.stem.endswith("_questions"):
            yield from (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


@pytest.mark.parametrize(("cloud", "covered", "types", "kinds"), CASES)
def test_every_type_that_the_program_declares_is_asked_for(
    cloud: str, covered: dict[str, str], types: tuple[str, ...], kinds: tuple[str, ...]
) -> None:
    assert set(covered) == set(types)
    assert set(covered.values()) <= set(kinds)


@pytest.mark.parametrize(("cloud", "covered", "types", "kinds"), CASES)
def test_every_resource_in_the_programs_source_is_asked_for(
    cloud: str, covered: dict[str, str], types: tuple[str, ...], kinds: tuple[str, ...]
) -> None:
    """`aws.ec2.Vpc(…)` in the source is the type aws:ec2/vpc:Vpc."""
    used = set()
    for call in calls(cloud):
        found = re.fullmatch(rf"{cloud}\.(\w+)\.([A-Z]\w*)", ast.unparse(call.func))
        if found and not found[2].endswith("Args"):
            used.add(f"{cloud}:{found[1]}/{found[2][0].lower()}{found[2][1:]}:{found[2]}")
    assert used
    assert used <= set(covered)


def test_every_name_that_aws_could_show_without_tags_is_known() -> None:
    assert names("aws") <= {*aws.PARTS}


def test_every_name_that_alicloud_could_show_without_tags_is_known() -> None:
    """Only what is searched by name: key pair, role, policy and SNAT entry."""
    assert {*alicloud.PARTS} <= names("alicloud")


def names(cloud: str) -> set[str]:
    """Last arguments of `resource_name(…)` that are literal."""
    ends = [call.args[1] for call in calls(cloud) if ast.unparse(call.func) == "resource_name"]
    return {str(end.value) for end in ends if isinstance(end, ast.Constant)}
