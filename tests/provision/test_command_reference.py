"""docs/commands.md is made from the command line and is never stale."""

from __future__ import annotations

from provision.cli.app import COMMANDS
from provision.command_reference import PAGE, reference


def test_the_page_is_what_the_command_line_says_now() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run: python -m provision.command_reference"


def test_every_command_has_a_chapter_with_words_of_its_own() -> None:
    chapters = reference().split("\n## ")[1:]
    assert [chapter.splitlines()[0] for chapter in chapters] == list(COMMANDS)
    assert all(len(chapter) > 80 for chapter in chapters)
