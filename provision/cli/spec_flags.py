"""One definition of the spec's flags for every command that takes a spec (up, plan, redeploy, config show).

@app.command()
@spec_options
def plan(given: Given, as_json: bool = False) -> None:
    resolved = given.resolve()
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from provision.fields import FIELDS, FieldDoc

if TYPE_CHECKING:
    from provision.config import Resolved

R = TypeVar("R")
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


@dataclass(frozen=True, slots=True)
class Given:
    """What the user typed: flags by snake_case name (only those given) and the file."""

    flags: dict[str, object]
    file: Path | None

    def resolve(self) -> Resolved:
        """Reads flags, deploy.yaml (the one given, or the one in this folder) and environment.

        Raises provision.spec.SpecError.
        """
        from provision import config

        return config.resolve(self.flags, config.find_file(self.file))


def spec_options(command: Callable[..., R]) -> Callable[..., R]:
    """Replaces the command's parameter `given` by one flag per field of the spec, and --file."""
    own = inspect.signature(command, eval_str=True).parameters

    @functools.wraps(command)
    def run(**options: Any) -> R:
        flags = {field.name: options.pop(field.name) for field in FIELDS}
        file = options.pop("file")
        given = Given({name: value for name, value in flags.items() if value not in (None, [])}, file)
        return command(given=given, **options)

    kept = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in own.values() if item.name != "given"]
    added = [_file_parameter(), *(_parameter(field) for field in FIELDS)]
    signature = inspect.Signature([*added, *kept])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {item.name: item.annotation for item in signature.parameters.values()}
    return run


def _file_parameter() -> inspect.Parameter:
    help_text = "Spec file. Default: deploy.yaml in this folder, if there is one."
    annotation = Annotated[Path | None, typer.Option("--file", "-f", help=help_text)]
    return inspect.Parameter("file", _KEYWORD, default=None, annotation=annotation)


def _parameter(field: FieldDoc) -> inspect.Parameter:
    kinds: dict[str, Any] = {"text": str | None, "list": list[str] | None, "flag": bool | None}
    name = f"{field.flag}/--no-{field.flag[2:]}" if field.shape == "flag" else field.flag
    metavar = None if field.shape == "flag" else field.name.upper()
    option = typer.Option(name, help=field.help, rich_help_panel=field.group, metavar=metavar, show_default=False)
    return inspect.Parameter(field.name, _KEYWORD, default=None, annotation=Annotated[kinds[field.shape], option])
