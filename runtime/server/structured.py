"""Structured output: from `response_format`, `guided_*` and `tool_choice` to one grammar in llguidance's form. Pure.

What cannot be honoured exactly (a keyword of JSON Schema that is not enforced, look-around in a regular expression) is
refused with the library's own reason, never relaxed in silence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from runtime.server.errors import ApiError, bounded, invalid

MAX_GRAMMAR = 64 * 2**10  # characters of a schema, expression or list of choices
MAX_DEPTH = 32  # of a schema
# Least common multiple of all `multipleOf`: the automaton has as many states, and no limit of the library counts them.
MAX_MULTIPLE = 10_000
_ESCAPED = {"/": "\\/", "\n": "\\n"}
# A part of the library's defaults for building, so that a hostile grammar costs milliseconds.
_LIMITS = LLParserLimits(initial_lexer_fuel=200_000, max_grammar_size=50_000, verbose_errors=False)
_TRIED_BYTES = 4  # of an output: what explodes when it is followed does so at once
_REST = "rest[lazy]: /(.|\\n)*<\\/think>/\nspace: /\\s+/\n"
_THINKING = {
    "none": "start: body\n",
    "open": "start: rest space? body\n" + _REST,
    "possible": 'start: ("<think>" rest space?)? body\n' + _REST,
}

Thinking = Literal[
    "none", "open", "possible"
]  # before the answer: never; the prompt has begun it; the model may begin it


def json_object() -> str:
    """Body of a grammar: any JSON object."""
    return 'body: %json {"type": "object"}\n'


def json_schema(schema: object, param: str) -> str:
    """Body of a grammar: JSON that a schema describes. Raises ApiError 400."""
    if not isinstance(schema, dict):
        raise invalid("a JSON Schema is an object", param)
    text = json.dumps(schema)
    _check_size(text, param)
    _check_schema(schema, param)
    return f"body: %json {text}\n"


def regex(expression: str, param: str) -> str:
    """Body of a grammar: text that a regular expression matches as a whole. Raises ApiError 400."""
    _check_size(expression, param)
    # Between slashes on one line: what would end either is written as an escape.
    written = re.sub(r"\\.|/|\n", lambda found: _ESCAPED.get(found.group(), found.group()), expression)
    return f"body: /{written}/\n"


def choice(options: Sequence[str], param: str) -> str:
    """Body of a grammar: one of some texts. Raises ApiError 400."""
    if not options or not all(options):
        raise invalid("needs at least one choice, and none may be empty", param)
    _check_size("".join(options), param)
    return f"body: {' | '.join(json.dumps(option, ensure_ascii=False) for option in options)}\n"


def tool_calls(schemas: Mapping[str, object], begin: str, end: str, *, several: bool, param: str) -> str:
    """Body of a grammar: one call (or several) of the tools in `schemas` (name: JSON Schema of its arguments), each
    written between `begin` and `end`. Raises ApiError 400."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": schema},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, schema in schemas.items()
    ]
    text = json.dumps({"anyOf": calls})
    _check_size(text, param)
    _check_schema(list(schemas.values()), param)
    one = f"{json.dumps(begin)} call {json.dumps(end)}"
    more = f' ("\\n" {one})*' if several else ""
    return f"body: {one}{more}\ncall: %json {text}\n"


def grammar(body: str, thinking: Thinking, param: str) -> str:
    """The whole grammar, if llguidance can build it within the limits. Raises ApiError 400."""
    whole = LLMatcher.grammar_from_lark(_THINKING[thinking] + body)
    is_error, messages = LLMatcher.validate_grammar_with_warnings(whole, limits=_LIMITS)
    if is_error or messages:
        reason = (messages[0] if messages else "it cannot be built").strip().partition("\n")[0]
        raise _not_enforced(reason, param)
    _follow(LLMatcher.grammar_from_lark(_THINKING["none"] + body), param)
    return whole


def _follow(grammar: str, param: str) -> None:
    """Takes the first bytes of some output: `(a{1000}){1000}` can be built but not followed. Raises ApiError 400."""
    matcher = LLMatcher(_bytes(), grammar, log_level=0, limits=_LIMITS)
    for _ in range(_TRIED_BYTES):
        allowed = int.from_bytes(matcher.compute_bitmask(), "little")
        first = (allowed & -allowed).bit_length() - 1
        if matcher.is_error() or not 0 <= first <= 0xFF or not matcher.consume_token(first):
            break
    if matcher.is_error():
        raise _not_enforced(matcher.get_error().partition("\n")[0], param)


@lru_cache(1)
def _bytes() -> LLTokenizer:
    """A vocabulary of 256 bytes and an end."""
    return LLTokenizer("byte")


def _not_enforced(reason: str, param: str) -> ApiError:
    return invalid(f"cannot be enforced: {bounded(reason)}", param, "unsupported_grammar")


def _check_size(text: str, param: str) -> None:
    if len(text) > MAX_GRAMMAR:
        raise invalid(f"has {len(text)} characters, over the limit of {MAX_GRAMMAR}", param)


def _check_schema(schema: object, param: str) -> None:
    if _depth(schema) > MAX_DEPTH:
        raise invalid(f"the schema is nested deeper than {MAX_DEPTH} levels", param)
    if math.lcm(*(Fraction(str(number)).numerator for number in _multiples(schema))) > MAX_MULTIPLE:
        raise invalid(f"its multipleOf cannot be enforced: together they are over {MAX_MULTIPLE}", param)


def _multiples(value: object) -> Iterator[int | float]:
    """Every `multipleOf`, wherever it stands."""
    if isinstance(value, dict):
        number = value.get("multipleOf")
        if isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number):
            yield number
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inner:
        yield from _multiples(item)


def _depth(value: object, level: int = 1) -> int:
    if level > MAX_DEPTH:
        return level
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max((_depth(item, level + 1) for item in inner), default=level)
