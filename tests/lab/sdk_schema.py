"""Judges what a program registers by the typed Args classes of the provider's own SDK.

Pulumi's mocks accept any property; the real providers do not. An error is a path and what is wrong there: an unknown
or missing property, a wrong type, a wrong nesting, a value outside an enum.
"""

from __future__ import annotations

import collections.abc
import enum
import functools
import importlib
import inspect
import json
import re
import sys
import types
import typing
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi import _types

from tests.lab.pulumi_wire import UNKNOWN, Properties, Value, is_asset, is_secret

BUILT_IN = ("pulumi",)  # packages without an SDK of their own
PROVIDER_PREFIX = "pulumi:providers:"


class SchemaError(Exception):
    """The inputs of a resource do not fit its type."""


@dataclass(frozen=True, slots=True)
class Property:
    """One input of an Args class: its type hint, and whether it must be given."""

    hint: Any
    required: bool


def check(token: str, inputs: Properties) -> None:
    """Raises SchemaError with every problem of a resource's inputs; `token` is for example
    "aws:ec2/instance:Instance" or "pulumi:providers:aws"."""
    if token.startswith(PROVIDER_PREFIX):
        cls = importlib.import_module(f"pulumi_{token.removeprefix(PROVIDER_PREFIX)}.provider").ProviderArgs
        inputs = _parsed(cls, inputs)
    elif token.split(":")[0] in BUILT_IN:
        return
    else:
        cls = args_class(token)
    if problems := list(_object_problems("", cls, inputs)):
        raise SchemaError("; ".join(problems))


@functools.cache
def args_class(token: str) -> type:
    """The Args class of a resource type. Raises SchemaError for a type that the SDK does not have."""
    package, module, name = token.split(":")
    folder, _, leaf = module.partition("/")
    file = re.sub(r"(?<!^)(?=[A-Z])", "_", leaf).lower()
    root = f"pulumi_{package}"
    for path in (f"{root}.{folder}.{file}", f"{root}.{folder}", f"{root}.{file}", root):
        # Where a nested type has taken the plain name, the SDK's generator calls the resource's own class InitArgs.
        for suffix in ("InitArgs", "Args"):
            try:
                with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                    found: type = getattr(importlib.import_module(path), name + suffix)
            except (ImportError, AttributeError):
                continue
            return found
    raise SchemaError(f"{token}: the SDK has no such type")


@functools.cache
def properties(cls: type) -> Mapping[str, Property]:
    """Inputs of an Args class by their names on the wire."""
    names = _types.input_type_py_to_pulumi_names(cls)
    scope = {**vars(pulumi), "T": Any, **vars(sys.modules[cls.__module__])}
    initial = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
    required = {item.name for item in initial if item.name != "__self__" and item.default is inspect.Parameter.empty}
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        return {wire: Property(_hint(cls, name, scope), name in required) for name, wire in names.items()}


def _hint(cls: type, name: str, scope: dict[str, Any]) -> Any:
    return typing.get_type_hints(inspect.getattr_static(cls, name).fget, scope)["return"]


def _parsed(cls: type, inputs: Properties) -> Properties:
    """A provider's own inputs travel as JSON text wherever they are not texts."""
    found = dict(inputs)
    for name, item in properties(cls).items():
        value = inputs.get(name)
        if isinstance(value, str) and value != UNKNOWN and str not in set(_alternatives(item.hint)):
            found[name] = json.loads(value)
    return found


def _object_problems(path: str, cls: type, values: Properties) -> Iterator[str]:
    known = properties(cls)
    for name in values.keys() - known.keys() - {"__defaults"}:
        yield f"{path}{name}: {cls.__name__} has no such property"
    for name, item in known.items():
        if item.required and values.get(name) is None:
            yield f"{path}{name}: is required by {cls.__name__}"
        elif name in values:
            yield from _problems(f"{path}{name}", item.hint, values[name])


def _problems(path: str, hint: Any, value: Value) -> Iterator[str]:
    if is_secret(value):
        yield from _problems(path, hint, value["value"])
        return
    if value is None or value == UNKNOWN:
        return
    choices = list(_alternatives(hint))
    attempts = [list(_problems_of_one(path, choice, value)) for choice in choices]
    yield from min(attempts, key=len, default=[])


def _problems_of_one(path: str, hint: Any, value: Value) -> Iterator[str]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (list, collections.abc.Sequence):
        if not isinstance(value, list):
            yield f"{path}: {value!r} is not a list"
            return
        for position, item in enumerate(value):
            yield from _problems(f"{path}[{position}]", inner[0], item)
    elif origin in (dict, collections.abc.Mapping):
        if not isinstance(value, dict):
            yield f"{path}: {value!r} is not a map"
            return
        for key, item in value.items():
            yield from _problems(f"{path}.{key}", inner[1], item)
    elif inspect.isclass(hint) and _types.is_input_type(hint):
        if isinstance(value, dict):
            yield from _object_problems(f"{path}.", hint, value)
        else:
            yield f"{path}: {value!r} is not a {hint.__name__}"
    elif inspect.isclass(hint) and issubclass(hint, enum.Enum):
        if value not in [member.value for member in hint]:
            yield f"{path}: {value!r} is not one of {hint.__name__}"
    elif inspect.isclass(hint) and issubclass(hint, pulumi.Asset | pulumi.Archive):
        if not is_asset(value):
            yield f"{path}: {value!r} is not a file"
    elif not _is_scalar(hint, value):
        yield f"{path}: {value!r} is not a {hint.__name__}"


def _is_scalar(hint: Any, value: Value) -> bool:
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (str, bool) else True


def _alternatives(hint: Any) -> Iterator[Any]:
    """`Input[Optional[X]]` is a union of X, None, outputs and dicts with X's keys: the types that a wire value has."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        for member in typing.get_args(hint):
            yield from _alternatives(member)
    elif hint is type(None) or typing.is_typeddict(hint):
        return
    elif hint is not pulumi.Output and origin not in (collections.abc.Awaitable, pulumi.Output):
        yield hint
