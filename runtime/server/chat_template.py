"""A checkpoint's chat template: Jinja2 in the immutable sandbox, with what such templates expect to find.

The environment's rules (block trimming, loop controls, `raise_exception`, `strftime_now`, `tojson` without
HTML escapes) are those that Hugging Face documents for chat templates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class ChatTemplateError(ValueError):
    """The template does not compile, or it refuses these messages. The text is the template's own."""


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks training targets; for rendering it is its content."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as a plain set)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled template. Immutable, so one instance serves all threads."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises ChatTemplateError."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        self._special_tokens = dict(special_tokens)
        self.source = source
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ChatTemplateError(f"the chat template does not compile: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, bool] | None = None,
    ) -> str:
        """The prompt text up to where the assistant starts to write. `options`: further names that templates know.

        Raises ChatTemplateError.
        """
        try:
            return self._template.render(
                messages=messages,
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=True,
                **(options or {}),
                **self._special_tokens,
            )
        except ChatTemplateError:
            raise
        # A template is the checkpoint's code: whatever it raises is about these messages.
        except Exception as error:
            raise ChatTemplateError(f"the chat template failed: {type(error).__name__}: {error}") from error


def _refuse(message: str) -> str:
    raise ChatTemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
