"""`deployctl ps`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from provision.sweep.everywhere import End, Everywhere, Orphan, Unasked

app = typer.Typer(add_completion=False)
COLUMNS = ("NAME", "TARGET", "STATE", "MODEL", "ENDPOINT", "AGE", "PRICE", "TTL LEFT")
ORPHAN_COLUMNS = ("NAME", "CLOUD", "REGION", "TYPE", "STATE", "AGE", "PRICE", "TTL LEFT")
CLOUDS = ("aws", "alicloud")
EverywhereFlag = Annotated[
    bool,
    typer.Option("--everywhere", help="Also ask all regions of both clouds what bears deployctl's tag: seconds."),
]


@app.command()
def ps(everywhere: EverywhereFlag = False, json: JsonFlag = False) -> None:
    """List all deployments of this user, on this machine and on clouds, with state, endpoint, age and price.

    --everywhere finds orphans too: what bears deployctl's tag in any region of the account, but belongs to no
    deployment that is known here.
    """
    on_clouds, problems = cloud_targets()
    seen = [*(look(target_of(state)) for state in list_states()), *(look(target) for target in on_clouds)]
    for problem in problems:
        say(f"not known: {problem}")
    deployments = [dataclasses.asdict(item) for item in seen]
    if not everywhere:
        if json:
            emit_json(deployments)
        else:
            emit(deployment_table(seen))
        return
    from provision.sweep.everywhere import orphans, search_everywhere

    say("asking all regions …")
    answer = search_everywhere(CLOUDS)
    strays = orphans(answer.found, lambda cloud, region, name: owns(seen, cloud, region, name))
    for line in unasked_lines(answer.unasked):
        say(line)
    if json:
        emit_json(
            {
                "deployments": deployments,
                "orphans": [dataclasses.asdict(item) for item in strays],
                "not_searched": [dataclasses.asdict(item) for item in answer.unasked],
                "not_known": problems,
            }
        )
        return
    emit(deployment_table(seen))
    emit("\n" + orphan_text(strays, answer, time.time(), sure=not problems))


def look(target: Deployed) -> Observation:
    """One observation; a damaged deployment is listed with its error and hides no other."""
    try:
        return target.observe()
    except DeployctlError as error:
        where = "local" if isinstance(target, LocalTarget) else "host" if isinstance(target, HostTarget) else "cloud"
        return Observation(target.name, where, "failed", error=str(error), hint=error.next_command)


def owns(seen: Iterable[Observation], cloud: str, region: str, name: str) -> bool:
    """Whether a stack that is known here has made this. One that cannot say where it is may be anywhere."""
    return any(
        item.name == name and item.target in (cloud, "cloud", "unknown") and item.region in (region, None)
        for item in seen
    )


def deployment_table(seen: list[Observation]) -> str:
    return table([COLUMNS, *(row(item) for item in seen)])


def row(seen: Observation) -> tuple[str, ...]:
    state = progress_text(seen) if seen.life == "starting" else seen.life
    age = format_seconds(seen.age_s) if seen.age_s is not None else "-"
    price = f"${seen.price_per_hour:.2f}/h" if seen.price_per_hour is not None else "-"
    left = time_left(seen.expires_at, time.time()) if seen.expires_at is not None else "-"
    return (seen.name, seen.target, state, seen.model or "-", seen.base_url or "-", age, price, left)


def time_left(end: End, now: float) -> str:
    if isinstance(end, str):
        return end
    return format_seconds(end - now) if end > now else "over"


def orphan_text(strays: tuple[Orphan, ...], answer: Everywhere, now: float, *, sure: bool) -> str:
    """`sure`: all that this user's backend knows is known, so that what is listed belongs to none of it."""
    if answer.regions == 0:
        return "no cloud could be searched"
    if not strays:
        whole = "" if not answer.unasked else ", as far as they could be asked"
        return f"no orphans in {answer.regions} regions{whole}"
    head = "nothing here has made these:" if sure else "unknown whose these are, not all stacks could be read:"
    lines = [head, table([ORPHAN_COLUMNS, *(orphan_row(item, now) for item in strays)])]
    for item in strays:
        lines += [f"{item.name} in {item.region}: {', '.join(item.resources)}", f"  next: {item.next_command}"]
    return "\n".join(lines)


def orphan_row(item: Orphan, now: float) -> tuple[str, ...]:
    age = "unknown" if item.made_at is None else format_seconds(now - item.made_at)
    left = time_left(item.ends, now)
    if item.state == "no machine":
        age, left = "-", "-"
    kind = item.instance_type or "-"
    return (item.name, item.cloud, item.region, kind, item.state, age, price_text(item), left)


def price_text(item: Orphan) -> str:
    if item.usd_per_hour is None:
        return "unknown"
    return f"${item.usd_per_hour:.3f}/h" + (" and more" if item.unpriced else "")


def unasked_lines(unasked: Iterable[Unasked]) -> list[str]:
    """One line per cloud and reason, however many regions gave it."""
    places: dict[tuple[str, str], list[str]] = {}
    for item in unasked:
        where = places.setdefault((item.cloud, item.reason.partition("\n")[0]), [])
        if item.region is not None:
            where.append(f"{item.region} ({item.kind})")
    return [
        f"not searched: {cloud}{' ' + ', '.join(where) if where else ''}: {reason}"
        for (cloud, reason), where in places.items()
    ]


def table(rows: list[tuple[str, ...]]) -> str:
    """Columns as wide as their widest cell, without trailing blanks."""
    widths = [max(len(cells[index]) for cells in rows) for index in range(len(rows[0]))]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)) for cells in rows)
    return "\n".join(line.rstrip() for line in lines)
