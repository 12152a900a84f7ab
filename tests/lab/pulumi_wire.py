"""Values as Pulumi sends them: protobuf structs that mark secrets, unknowns and files. Pure.

The markers are constants of Pulumi's protocol; an object with the key `SIGNATURE` is one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format, struct_pb2

SIGNATURE = "4dabf18193072939515e22adb298388d"
SECRET = "1b47061264138c4ac30d75fd1eb44270"
ASSET = "c44067f5952c0a294b673a41bacd8c17"
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"  # what a preview sends where only an update could know

Value = Any  # JSON with markers
Properties = dict[str, Value]


def from_struct(struct: struct_pb2.Struct) -> Properties:
    """Protobuf knows only floats: whole numbers become ints again."""
    found: Properties = _whole_numbers(json_format.MessageToDict(struct))
    return found


def to_struct(values: Mapping[str, Value]) -> struct_pb2.Struct:
    return json_format.ParseDict(dict(values), struct_pb2.Struct())


def secret(value: Value) -> Value:
    """`value` with the mark of a secret, once."""
    return value if is_secret(value) else {SIGNATURE: SECRET, "value": value}


def is_secret(value: Value) -> bool:
    return isinstance(value, dict) and value.get(SIGNATURE) == SECRET


def is_asset(value: Value) -> bool:
    """A file (`path`) or text (`text`) that travels as a value."""
    return isinstance(value, dict) and value.get(SIGNATURE) == ASSET


def holds_secret(value: Value) -> bool:
    """Whether `value` or something inside it is marked."""
    return is_secret(value) or any(map(holds_secret, _parts(value)))


def holds_unknown(value: Value) -> bool:
    return bool(value == UNKNOWN) or any(map(holds_unknown, _parts(value)))


def plain(value: Value) -> Value:
    """`value` without marks of secrets."""
    if is_secret(value):
        return plain(value["value"])
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def _parts(value: Value) -> list[Value]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _whole_numbers(value: Value) -> Value:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    return value
