"""`deployctl stop`."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli.ask import confirm
from provision.cli.names import NameArgument, NameOption, find_target
from provision.cli.output import JsonFlag, emit, emit_json, say
from provision.errors import UsageError
from provision.local import LocalTarget
from provision.progress import format_seconds

if TYPE_CHECKING:
    from provision.cloud import CloudTarget
    from provision.power import Stopped
    from provision.target import Deployed

app = typer.Typer(add_completion=False)


@app.command()
def stop(
    name: NameArgument = None,
    name_option: NameOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonFlag = False,
) -> None:
    """Switch a deployment off and keep it, so that computing is not billed; prints what still is.

    `deployctl wake` switches it on again with the same address, keys and certificate; the cloud's timer goes on.
    """
    target = find_target(name, name_option)
    if isinstance(target, LocalTarget):
        stop_local(target, json=json)
        return
    cloud = rented(target, "stop")
    from provision.lease import leased
    from provision.power import stop_machine
    from provision.state import this_command

    confirm(
        f"Stop {cloud.name}? Its endpoint answers nobody until it is woken.",
        yes=yes,
        command=f"deployctl stop {cloud.name}",
    )
    with leased(cloud, this_command(), say):
        stopped = stop_machine(cloud, say)
    if json:
        emit_json(dataclasses.asdict(stopped) | {"usd_per_hour": stopped.usd_per_hour})
    else:
        emit("\n".join(describe(stopped, time.time())))


def stop_local(target: LocalTarget, *, json: bool) -> None:
    from provision.state import locked, this_command

    with locked(target.state, this_command()):
        target.stop()
    if json:
        emit_json({"name": target.name, "items": [], "usd_per_hour": 0.0, "expires_at": None})
    else:
        emit(f"{target.name} is stopped: no processes, $0.00/h; its state is kept\nnext: deployctl wake {target.name}")


def rented(target: Deployed, command: str) -> CloudTarget:
    """Raises UsageError for a machine that deployctl does not rent."""
    from provision.cloud import CloudTarget

    if isinstance(target, CloudTarget):
        return target
    raise UsageError(
        f"`deployctl {command}` is for machines that deployctl rents; {target.name} runs on one of your own",
        why="switching it off would save nothing here; `deployctl down` frees its GPU and its memory",
        next_command=f"deployctl down {target.name}",
    )


def describe(stopped: Stopped, now: float) -> list[str]:
    """What still bills, line by line, and what comes next."""
    lines = [f"{stopped.name} is stopped: computing is not billed. What still is, by estimate:"]
    for item in stopped.items:
        price = "unknown" if item.usd_per_hour is None else f"${item.usd_per_hour:.4f}/h"
        lines.append(f"  {price:<11} {item.name}")
    unknown = " and what is unknown" if any(item.usd_per_hour is None for item in stopped.items) else ""
    lines.append(f"  ${stopped.usd_per_hour:.4f}/h in all{unknown}")
    if stopped.expires_at is not None:
        left = format_seconds(max(0.0, stopped.expires_at - now))
        lines.append(
            f"the cloud deletes the machine in {left} all the same; deployctl extend {stopped.name} 8h moves that"
        )
    lines += [f"next: deployctl wake {stopped.name}", f"      deployctl down {stopped.name}  ends all of it"]
    return lines
