"""The same as test_automation, with a real `pulumi` and its local backend. Runs where the command is on PATH."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from provision import backend as backends
from provision.automation import CloudStack, Project, UpdateError
from provision.backend import project_text

REAL = shutil.which("pulumi")
pytestmark = pytest.mark.skipif(
    REAL is None, reason="no real `pulumi` command on PATH: its local backend is not tested"
)
PROGRAM = """
    import pulumi
    config = pulumi.Config()
    if config.get("refuse"):
        raise pulumi.RunError("it does not fit")
    pulumi.log.info("candidates: g6.xlarge/us-east-1a")
    pulumi.export("word", config.require("word"))
    pulumi.export("key", config.require_secret("api_key"))
"""


@pytest.fixture
def stack(user: Path, program: Callable[[str], Path]) -> CloudStack:
    """A stack of a program that needs no provider."""
    folder = program(PROGRAM)
    (folder / "Pulumi.yaml").write_text(project_text(sys.prefix, sys.base_prefix))
    backend = backends.choose_backend(os.environ)
    backends.prepare(backend)
    made = Project(Path(REAL or ""), backend, folder, lambda line: None).open_or_create("chat")
    made.set_config({"deployctl:word": "hello"}, secret={"deployctl:api_key": "sk-secret"})
    return made


def test_config_outputs_and_secrets_come_back(stack: CloudStack) -> None:
    assert stack.config() == {"deployctl:word": "hello", "deployctl:api_key": "sk-secret"}
    assert "sk-secret" not in (stack.project.folder / "Pulumi.chat.yaml").read_text()
    stack.preview()
    stack.up()
    assert stack.outputs() == {"word": "hello", "key": "sk-secret"}
    assert stack.up().is_same


def test_another_laptop_takes_the_config_from_the_backend(stack: CloudStack) -> None:
    stack.up()
    (stack.project.folder / "Pulumi.chat.yaml").unlink()
    assert stack.project.open("chat").config() == {"deployctl:word": "hello", "deployctl:api_key": "sk-secret"}


def test_a_program_that_refuses_is_told_apart(stack: CloudStack) -> None:
    stack.set_config({"deployctl:refuse": "yes"}, secret={})
    with pytest.raises(UpdateError) as caught:
        stack.up()
    assert caught.value.of_program
    assert "it does not fit" in str(caught.value)


def test_an_empty_stack_is_deleted_with_its_config(stack: CloudStack) -> None:
    stack.up()
    stack.destroy()
    stack.delete()
    assert stack.project.names() == []
    assert not (stack.project.folder / "Pulumi.chat.yaml").exists()
