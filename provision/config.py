"""Where the spec's values come from: flags, environment, deploy.yaml, Pulumi config, defaults, in this order.

`resolve` merges them, remembers the origin of each value and puts the place into every error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import SecretStr

from provision import fields
from provision.model_ref import parse_model
from provision.spec import DeploymentSpec, Problem, SpecError, nearest, parse, target_defaults

DEFAULT_FILE = Path("deploy.yaml")
PULUMI_PROJECT = "deployctl"
TOKEN_VARIABLE = "HF_TOKEN"
HIDDEN = "********"

Kind = Literal["flag", "environment", "file", "pulumi", "default"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one value came from; `detail` is the flag, variable, "deploy.yaml:7", key or target."""

    kind: Kind
    detail: str = ""

    def __str__(self) -> str:
        if self.kind == "default":
            return f"default ({self.detail})" if self.detail else "default"
        return {"flag": "flag ", "environment": "environment ", "pulumi": "Pulumi config "}.get(
            self.kind, ""
        ) + self.detail


@dataclass(frozen=True, slots=True)
class Resolved:
    """A valid spec and the origin of each of its fields."""

    spec: DeploymentSpec
    origins: Mapping[str, Origin]

    def shown_json(self, name: str) -> Any:
        """The value in JSON's types, secrets hidden."""
        value = getattr(self.spec, name)
        if isinstance(value, SecretStr):
            return HIDDEN
        return self.spec.model_dump(mode="json", include={name})[name]

    def shown(self, name: str) -> str:
        """The value as text, secrets hidden, as deploy.yaml would have it; "-" where nothing is set."""
        value = self.shown_json(name)
        if value in (None, [], {}):
            return "-"
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def resolve(
    flags: Mapping[str, object],
    file: Path | None = None,
    pulumi: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
) -> Resolved:
    """Merges the sources: flags > deploy.yaml > Pulumi config > defaults; HF_TOKEN counts where no source
    names hub_token and the model comes from a hub.

    `flags` has snake_case names, None and () for flags not given. `pulumi` has the keys with or without
    the prefix `deployctl:`. Raises SpecError with every problem of every source.
    """
    environment = os.environ if env is None else env
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for key, text in (pulumi or {}).items():
        name = key.removeprefix(f"{PULUMI_PROJECT}:")
        values[name], origins[name] = text, Origin("pulumi", f"{PULUMI_PROJECT}:{name}")
    if file is not None:
        for name, (value, line) in read_file(file).items():
            values[name], origins[name] = value, Origin("file", f"{file.name}:{line}")
    for name, value in flags.items():
        if value is None or value == [] or value == ():
            continue
        flag = fields.BY_NAME[name].flag if name in fields.BY_NAME else name
        values[name], origins[name] = value, Origin("flag", flag)
    if "hub_token" not in values and _from_hub(values) and (token := environment.get(TOKEN_VARIABLE)):
        values["hub_token"], origins["hub_token"] = token, Origin("environment", TOKEN_VARIABLE)
    try:
        spec = parse(values)
    except SpecError as error:
        raise SpecError(_placed(error.problems, origins)) from None
    return Resolved(spec, {name: _origin(name, values, origins) for name in DeploymentSpec.model_fields})


def _from_hub(values: Mapping[str, Any]) -> bool:
    try:
        return parse_model(str(values.get("model", "demo"))).kind in ("hf", "modelscope")
    except ValueError:
        return False


def _placed(problems: Iterable[Problem], origins: Mapping[str, Origin]) -> list[Problem]:
    found = []
    for problem in problems:
        origin = origins.get(problem.path.split(".")[0])
        found.append(replace(problem, where=str(origin)) if origin else problem)
    return found


def _origin(name: str, values: Mapping[str, Any], origins: Mapping[str, Origin]) -> Origin:
    if name in origins and values[name] is not None:
        return origins[name]
    depends = name in target_defaults({key: value for key, value in values.items() if value is not None})
    return Origin("default", str(values.get("cloud", "local")) if depends else "")


def find_file(given: Path | None, folder: Path | None = None) -> Path | None:
    """The spec file to read: the one given, else `deploy.yaml` in the folder if there is one."""
    if given is not None:
        return given
    default = (folder or Path()) / DEFAULT_FILE
    return default if default.is_file() else None


def read_file(path: Path) -> dict[str, tuple[Any, int]]:
    """Top-level values of a deploy.yaml with their line numbers. Raises SpecError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError([Problem(str(path), "there is no such file", _neighbour(path))]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError([Problem(str(path), f"cannot be read ({error})")]) from None
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            return _values(loader, node, path)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "it cannot be parsed"
        raise SpecError([Problem(f"{path}{line}", f"is not valid YAML: {reason}")]) from None


def _values(loader: yaml.SafeLoader, node: yaml.Node | None, path: Path) -> dict[str, tuple[Any, int]]:
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise SpecError([Problem(str(path), "must hold keys and values, such as `model: demo`")])
    found: dict[str, tuple[Any, int]] = {}
    problems = []
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in found:
            problems.append(Problem(name, f"is set twice, first in line {found[name][1]}", None, f"{path.name}:{line}"))
        found[name] = (loader.construct_object(value, deep=True), line)
    if problems:
        raise SpecError(problems)
    return found


def read_stack(stack: str, folder: Path | None = None) -> dict[str, object]:
    """The keys `deployctl:*` of a Pulumi stack's file, as `resolve` takes them. Values that Pulumi has
    encrypted are left out: only `pulumi` can read them. Raises SpecError."""
    path = (folder or Path()) / f"Pulumi.{stack}.yaml"
    config = read_file(path).get("config", ({}, 0))[0] or {}
    if not isinstance(config, dict):
        raise SpecError([Problem(str(path), "config must hold keys and values")])
    found: dict[str, object] = {}
    for key, value in config.items():
        encrypted = isinstance(value, dict) and set(value) == {"secure"}
        if str(key).startswith(f"{PULUMI_PROJECT}:") and not encrypted:
            found[str(key)] = value
    return found


def _neighbour(path: Path) -> str | None:
    folder = path.parent
    names = [item.name for item in folder.glob("*.y*ml")] if folder.is_dir() else []
    return nearest(path.name, names)
