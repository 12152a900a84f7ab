"""The pages say what is so: links lead somewhere, commands and flags exist, tables list what the code has."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.cli.app import COMMANDS, load
from provision.errors import exit_codes

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
PROOFS = [ROOT / "docs" / name for name in ("verification.md", "limits.md")]
PROOF = re.compile(r"`((?:tests/)?[\w/]*test_[\w*]+\.py)(?:::(\w+))?`")


def code_lines(page: Path) -> Iterator[str]:
    """Lines of fenced blocks, and inline code."""
    text = page.read_text()
    for block in re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        yield from block.splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def commands(page: Path, program: str) -> Iterator[list[str]]:
    """Words of every line that calls `program`, without comments and without what it is piped into."""
    for line in code_lines(page):
        for found in re.findall(rf"(?:^|\s|\(){program} ([^#)|…]*)", line.partition("  #")[0]):
            try:
                yield shlex.split(found)
            except ValueError:
                yield found.split()


def proofs(row: str) -> Iterator[tuple[str, list[Path], str]]:
    """(as named, files, test or "") of each test that a row names. A name without a folder stands in the last one's."""
    folder = ROOT / "tests"
    for name, test in PROOF.findall(row):
        if "/" in name:
            folder = (ROOT / name).parent
        yield name, sorted(folder.glob(Path(name).name)), test


def slow_tests(file: Path) -> dict[str, bool]:
    """Each test of a file: whether `make test` leaves it out."""
    module = ast.parse(file.read_text())
    assigned = [ast.unparse(node) for node in module.body if isinstance(node, ast.Assign)]
    all_slow = any(line.startswith("pytestmark") and "pytest.mark.slow" in line for line in assigned)
    return {
        node.name: all_slow or any(ast.unparse(mark) == "pytest.mark.slow" for mark in node.decorator_list)
        for node in module.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("page", PROOFS, ids=lambda page: page.name)
def test_every_file_of_tests_that_is_named_as_a_proof_exists(page: Path) -> None:
    assert [name for name, files, _ in proofs(page.read_text()) if not files] == []


@pytest.mark.parametrize("page", PROOFS, ids=lambda page: page.name)
def test_a_proof_that_make_test_leaves_out_says_so(page: Path) -> None:
    silent = []
    for row in page.read_text().splitlines():
        for name, files, test in proofs(row):
            found = {key: slow for file in files for key, slow in slow_tests(file).items() if test in ("", key)}
            if found and all(found.values()) and "make test-all" not in row:
                silent.append(f"{name} {test}: {row[:60]}")
    assert silent == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_leads_to_a_file(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    broken = [
        target
        for target in targets
        if not target.startswith(("http://", "https://")) and not (page.parent / target).exists()
    ]
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_deployctl_command_on_a_page_exists_with_its_flags(page: Path) -> None:
    unknown = []
    for words in commands(page, "deployctl"):
        if not words or not re.fullmatch(r"[a-z]+", words[0]):
            continue
        if words[0] not in COMMANDS:
            unknown.append(words[0])
            continue
        command = load(words[0])
        for word in words[1:]:
            if word in getattr(command, "commands", {}):
                command = command.commands[word]
        known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        asked = {word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
        unknown += [f"{words[0]} {flag}" for flag in sorted(asked - known - {"--help"})]
    assert not unknown


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_make_target_on_a_page_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    asked = {words[0] for words in commands(page, "make") if words and re.fullmatch(r"[a-z-]+", words[0])}
    assert asked <= targets


def test_the_readme_shows_its_two_commands_first() -> None:
    block = re.search(r"^```\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert block is not None
    assert [line.split("#")[0].strip() for line in block.group(1).splitlines()] == ["make up", "make test"]


def test_the_page_of_exit_codes_is_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", (ROOT / "docs/exit-codes.md").read_text(), flags=re.MULTILINE)
    assert rows == [(str(code), meaning) for code, _, meaning in exit_codes()]


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {match.group() for text in wanted if (match := re.match(r"[A-Za-z0-9-]+", text))} - {"deployctl"}
    table = re.findall(r"^\|(.*)\|[^|]*\|$", (ROOT / "docs/dependencies.md").read_text(), flags=re.MULTILINE)
    explained = {name for row in table for name in re.findall(r"[A-Za-z][A-Za-z0-9-]+", row)}
    assert names - explained == set()


def test_the_drawings_fit_light_and_dark() -> None:
    for picture in (ROOT / "docs" / "pictures").glob("*.svg"):
        assert "prefers-color-scheme: dark" in picture.read_text(), picture.name
