"""How every command is told which deployment: `deployctl status NAME` or `--name NAME`, or the only one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from provision.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from provision.host import HostTarget
    from provision.local import LocalTarget
    from provision.state import LocalState
    from provision.target import Deployed


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


def find_target(argument: str | None, option: str | None) -> Deployed:
    """The deployment that was named, wherever it lives, or the only one: on this machine first, then on clouds.

    Raises NotFoundError, UsageError, CloudError.
    """
    from provision.state import choose_state, list_states, open_state

    name = one_name(argument, option)
    if list_states() if name is None else open_state(name).exists():
        return target_of(choose_state(name))
    from provision.cli.clouds import cloud_names, find_cloud_target

    if name is None:
        names = cloud_names()
        if len(names) > 1:
            raise NotFoundError(
                "there are several deployments and none was named",
                why=", ".join(names),
                next_command=f"the same command with --name {names[0]}",
            )
        name = names[0] if names else None
    found = find_cloud_target(name) if name else None
    return found if found is not None else target_of(choose_state(name))


def target_of(state: LocalState) -> LocalTarget | HostTarget:
    """The deployment of a state folder: on this machine, or on one over SSH."""
    from provision.cli.output import say
    from provision.host import HostTarget, is_host
    from provision.local import LocalTarget

    return HostTarget(state, say) if is_host(state) else LocalTarget(state)


def find_local_target(name: str) -> LocalTarget | HostTarget | None:
    """The deployment of this name whose state is on this machine; None where there is none. Raises UsageError."""
    from provision.state import open_state

    state = open_state(name)
    return target_of(state) if state.exists() else None
