"""`deployctl ps`."""

from __future__ import annotations

import dataclasses

import typer

from provision.cli.clouds import cloud_targets
from provision.cli.names import target_of
from provision.cli.output import JsonFlag, emit, emit_json, say
from provision.errors import DeployctlError
from provision.host import HostTarget
from provision.local import LocalTarget
from provision.progress import format_seconds, progress_text
from provision.state import list_states
from provision.target import Deployed, Observation

app = typer.Typer(add_completion=False)
COLUMNS = ("NAME", "TARGET", "STATE", "MODEL", "ENDPOINT", "AGE", "PRICE")


@app.command()
def ps(json: JsonFlag = False) -> None:
    """List all deployments of this user, on this machine and on clouds, with state, endpoint, age and price."""
    on_clouds, problems = cloud_targets()
    seen = [*(look(target_of(state)) for state in list_states()), *(look(target) for target in on_clouds)]
    for problem in problems:
        say(f"not known: {problem}")
    if json:
        emit_json([dataclasses.asdict(item) for item in seen])
        return
    emit(table([COLUMNS, *(row(item) for item in seen)]))


def look(target: Deployed) -> Observation:
    """One observation; a damaged deployment is listed with its error and hides no other."""
    try:
        return target.observe()
    except DeployctlError as error:
        where = "local" if isinstance(target, LocalTarget) else "host" if isinstance(target, HostTarget) else "cloud"
        return Observation(target.name, where, "failed", error=str(error), hint=error.next_command)


def row(seen: Observation) -> tuple[str, ...]:
    state = progress_text(seen) if seen.life == "starting" else seen.life
    age = format_seconds(seen.age_s) if seen.age_s is not None else "-"
    price = f"${seen.price_per_hour:.2f}/h" if seen.price_per_hour is not None else "-"
    return (seen.name, seen.target, state, seen.model or "-", seen.base_url or "-", age, price)


def table(rows: list[tuple[str, ...]]) -> str:
    """Columns as wide as their widest cell, without trailing blanks."""
    widths = [max(len(cells[index]) for cells in rows) for index in range(len(rows[0]))]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)) for cells in rows)
    return "\n".join(line.rstrip() for line in lines)
