"""The texts that commands print: snippets that run, lines that can be evaluated, codes that are documented."""

from __future__ import annotations

import ast
import json
import shlex
import subprocess
from dataclasses import replace

import pytest

from provision.cli.endpoint import env_lines
from provision.cli.present import ready_text, snippet_curl, snippet_python
from provision.cli.ps import table
from provision.cli.status import describe, exit_code
from provision.target import Access, Observation, ProcessView

ACCESS = Access("http://127.0.0.1:8000/v1", 'sk-it\'s $HOME "quoted"', "org/name", 2048)
READY = Observation(
    "chat", "local", "ready", model="demo", base_url=ACCESS.base_url, phase="ready", wanted_release="r1",
    release="r1", price_per_hour=0.0, processes=(ProcessView("engine", 12, 61.0),),
)  # fmt: skip


def test_the_curl_snippet_is_one_valid_command() -> None:
    words = shlex.split(snippet_curl(ACCESS).replace("\\\n", " "))
    assert words[:2] == ["curl", f"{ACCESS.base_url}/chat/completions"]
    assert f"Authorization: Bearer {ACCESS.api_key}" in words
    assert json.loads(words[-1])["model"] == "org/name"


def test_the_python_snippet_is_python_with_the_key_inside() -> None:
    constants = [node.value for node in ast.walk(ast.parse(snippet_python(ACCESS))) if isinstance(node, ast.Constant)]
    assert {ACCESS.base_url, ACCESS.api_key, ACCESS.model} <= set(constants)


def test_environment_lines_survive_the_shell_whatever_the_key_holds() -> None:
    script = env_lines(ACCESS) + '\nprintf "%s" "$OPENAI_API_KEY"'
    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout == ACCESS.api_key


def test_the_end_of_up_says_how_to_use_stop_and_move_it_to_a_cloud() -> None:
    text = ready_text("chat", ACCESS, model="demo")
    for wanted in (ACCESS.base_url, ACCESS.api_key, "deployctl logs chat", "deployctl down chat", "--cloud aws"):
        assert wanted in text


@pytest.mark.parametrize(("life", "code"), [("ready", 0), ("failed", 9), ("stopped", 10), ("starting", 11)])
def test_status_ends_with_the_code_of_the_life(life: str, code: int) -> None:
    assert exit_code(replace(READY, life=life)) == code  # type: ignore[arg-type]


def test_status_names_processes_and_uptime() -> None:
    lines = describe(READY)
    assert "engine      pid 12, up 1 min 01 s" in lines
    assert not any(line.startswith("next") for line in lines)


def test_status_of_a_failure_shows_error_hint_and_next_command() -> None:
    lines = describe(replace(READY, life="failed", phase="weights", error="no such model", hint="check the name"))
    text = "\n".join(lines)
    for wanted in ("failed in phase weights", "no such model", "check the name", "deployctl logs chat"):
        assert wanted in text


def test_a_release_on_its_way_is_shown_beside_the_one_that_serves() -> None:
    assert "release     r1 (asked for: r2)" in describe(replace(READY, wanted_release="r2"))


def test_a_table_is_as_wide_as_its_widest_cells() -> None:
    assert table([("NAME", "STATE"), ("a-long-name", "up")]) == "NAME         STATE\na-long-name  up"
