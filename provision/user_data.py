"""User-data: one plain `#cloud-config` that starts stage 0. Pure, and the same for the whole life of a VM.

Neither cloud runs changed user-data again, so nothing stands here that may change: no model, no release, no secret.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from importlib import resources

import msgspec

from provision.errors import MissingPartError, SpecError
from runtime.vm import Vm

MAX_BYTES = 12_288  # EC2 takes 16,384 before base64, ECS 32,768 and in some regions 16,384


class UserDataTooLargeError(SpecError):
    """User-data is over `MAX_BYTES`."""


def render_user_data(vm: Vm) -> str:
    """The `#cloud-config` of one VM, before base64.

    Raises UserDataTooLargeError above MAX_BYTES, MissingPartError without Jinja2.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingPartError(
            "user-data cannot be rendered",
            why="Jinja2 is not installed",
            next_command="pip install 'deployctl[aws,alicloud]'",
        ) from error
    environment = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    text = environment.from_string(_template("cloud-config.yaml.j2")).render(
        vm=msgspec.json.encode(vm).decode(), stage0=stage0(), unit=_template("deployctl-stage0.service").strip()
    )
    check_size(text)
    return text


def check_size(text: str) -> None:
    """Raises UserDataTooLargeError above MAX_BYTES."""
    size = len(text.encode())
    if size > MAX_BYTES:
        raise UserDataTooLargeError(
            f"user-data has {size:,} bytes, at most {MAX_BYTES:,} are allowed",
            why="the clouds refuse more than 16 KiB, and a margin is kept",
            next_command="deployctl plan   # with a shorter name or bucket",
        )


def stage0() -> str:
    """Stage 0 as it travels: without comments, docstrings, annotations and blank lines, one space of indent per level.

    The program stays the same; a test compares the syntax trees.
    """
    return strip_source(_template("stage0.py"))


def stage0_unit() -> str:
    """The systemd unit that runs it."""
    return _template("deployctl-stage0.service")


def strip_source(source: str) -> str:
    """Python source, formatted with four spaces per level and no string over several lines but docstrings."""
    dropped = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.start[1] for token in tokens if token.type == tokenize.COMMENT}
    lines = [
        line[: comments.get(number, len(line))].rstrip()
        for number, line in enumerate(_without_annotations(source), 1)
        if number not in dropped
    ]
    return "\n".join(re.sub("^ +", lambda indent: " " * (len(indent[0]) // 4), line) for line in lines if line)


def _without_annotations(source: str) -> list[str]:
    """The lines of an ASCII source with the annotations of functions taken out, each of which stands on one line.

    Comments keep their columns: none stands beside a signature.
    """
    lines = source.splitlines()
    cuts: list[tuple[int, int, int]] = []  # line, first column, the one after the last
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg) and node.annotation is not None:
            cuts.append((node.lineno, node.col_offset + len(node.arg), node.annotation.end_col_offset or 0))
        elif isinstance(node, ast.FunctionDef) and node.returns is not None:
            line, end = node.returns.lineno, node.returns.end_col_offset or 0
            cuts.append((line, lines[line - 1].rindex(" -> ", 0, end), end))
    for line, start, end in sorted(cuts, reverse=True):
        text = lines[line - 1]
        lines[line - 1] = text[:start] + text[end:]
    return lines


def _template(name: str) -> str:
    return resources.files("templates").joinpath(name).read_text("utf-8")
