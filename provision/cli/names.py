"""How every command is told which deployment: `deployctl status NAME` or `--name NAME`, or the only one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from provision.errors import UsageError

if TYPE_CHECKING:
    from provision.local import LocalTarget


def complete_name(incomplete: str) -> list[str]:
    """Names for the shell's completion."""
    from provision.state import list_states

    return [state.name for state in list_states() if state.name.startswith(incomplete)]


NameArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[NAME]",
        help="The deployment; may be left out when there is only one.",
        autocompletion=complete_name,
        show_default=False,
    ),
]
NameOption = Annotated[
    str | None,
    typer.Option("--name", "-n", help="The same as NAME.", autocompletion=complete_name, show_default=False),
]


def one_name(argument: str | None, option: str | None) -> str | None:
    """The name that was given in either place. Raises UsageError when the two differ."""
    if argument is not None and option is not None and argument != option:
        raise UsageError(f"two deployments are named: {argument} and {option}", why="name one of them")
    return argument if argument is not None else option


def find_target(argument: str | None, option: str | None) -> LocalTarget:
    """The deployment that was named, or the only one. Raises NotFoundError, UsageError."""
    from provision.local import LocalTarget
    from provision.state import choose_state

    return LocalTarget(choose_state(one_name(argument, option)))
