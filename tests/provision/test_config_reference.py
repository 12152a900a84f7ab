"""docs/configuration.md is made from the spec and is never stale."""

from __future__ import annotations

import yaml

from provision.config_reference import EXAMPLE, PAGE, reference
from provision.spec import DeploymentSpec, parse


def test_the_page_is_what_the_spec_says_now() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run: python -m provision.config_reference"


def test_the_page_names_every_field() -> None:
    page = reference()
    assert [name for name in DeploymentSpec.model_fields if f"| `{name}` |" not in page] == []


def test_the_example_of_the_page_is_a_valid_spec() -> None:
    assert parse(yaml.safe_load(EXAMPLE)).name == "chat"
