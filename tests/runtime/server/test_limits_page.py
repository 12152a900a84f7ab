"""docs/limits.md says what the code and the tests say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runtime.server import http_protocol, limits, structured

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "limits.md").read_text("utf-8")
MODULES = {"limits": limits, "structured": structured, "http_protocol": http_protocol}
ROWS = [row for row in PAGE.splitlines() if row.startswith("| ")]
HELD = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


def test_every_threat_names_a_test() -> None:
    threats = ROWS[ROWS.index("| threat or accident | what happens | test |") + 1 :]
    assert len(threats) == len(HELD) >= 40


@pytest.mark.parametrize(("file", "name"), sorted(set(HELD)))
def test_the_tests_that_it_names_exist(file: str, name: str) -> None:
    assert re.search(rf"^(?:def|class) {name}\b", (ROOT / file).read_text(), re.MULTILINE)


@pytest.mark.parametrize(("module", "name"), re.findall(r"`(\w+)\.(MAX_\w+)`", PAGE))
def test_the_numbers_are_those_of_the_code(module: str, name: str) -> None:
    [row] = [row for row in ROWS if f"`{module}.{name}`" in row and (name != "MAX_PROMPTS" or "times" not in row)]
    assert re.search(rf"\b{getattr(MODULES[module], name)}\b", row), row


def test_the_page_names_every_limit_of_the_code() -> None:
    named = set(re.findall(r"`limits\.(\w+)`", PAGE))
    known = {name for name in vars(limits) if name.startswith(("MAX_", "max_"))}
    assert known - named == {"MAX_COUNT", "MAX_QUEUED_TOKENS"}  # a number's range; within max_open_tokens


def test_the_head_may_take_as_long_as_the_page_says() -> None:
    assert f"within {http_protocol.BoundedProtocol.head_s:.0f} s" in PAGE


def test_the_numbers_of_the_bounds_that_grow_are_those_of_the_code() -> None:
    assert (limits.max_body(1), limits.max_body(10**7), limits.max_body(2**15)) == (1048576, 33554432, 64 * 2**15)
    assert limits.max_open_tokens(100, 4) == (4 + 256) * 100
    assert limits.max_open_tokens(10**7, 4) == 16777216
