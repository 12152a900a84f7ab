"""`deployctl cost`."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli.names import NameArgument, NameOption, find_target
from provision.cli.output import JsonFlag, emit, emit_json, say
from provision.cost_report import CostReport, end_within, spent
from provision.costs import CostItem, residual_items
from provision.errors import DeployctlError, NotRunningError, not_up
from provision.progress import format_seconds

if TYPE_CHECKING:
    from provision.cloud import CloudTarget
    from provision.target import Deployed
    from provision.usage import Usage

app = typer.Typer(add_completion=False)
OWN_MACHINE = CostItem("your own machine", 0.0, "nobody bills it")


@app.command()
def cost(
    name: NameArgument = None,
    name_option: NameOption = None,
    budget: Annotated[
        float | None,
        typer.Option(min=0.01, help="Dollars for the whole life of the machine: ends it earlier where that is needed."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show what a deployment costs: by line and hour, so far, until its end, and for a million tokens.

    --budget brings the end forward to the minute at which so much is spent; it never moves it back.
    """
    target = find_target(name, name_option)
    report = report_of(target)
    ends_at = None if budget is None else keep_budget(target, report, budget, yes=yes)
    if ends_at is not None:
        report = report_of(target)
    if json:
        emit_json(as_json(report))
    else:
        emit("\n".join(describe(report)))


def report_of(target: Deployed) -> CostReport:
    """What is known now. Raises CloudError, StateError."""
    now, seen = time.time(), target.observe()
    usage = None if seen.life == "stopped" else known_usage(target)
    if seen.target in ("local", "host"):
        since = None if seen.age_s is None else now - seen.age_s
        return CostReport(target.name, seen.target, seen.life, (OWN_MACHINE,), now, since, None, 0.0, usage)
    from provision.cloud import CloudTarget

    if not isinstance(target, CloudTarget):
        raise TypeError(f"the bill of {type(target).__name__} is kept nowhere")
    exports, rest = target.exports, left_over(target)
    ended = exports.expires_at if exports.expires_at is not None and exports.expires_at <= now else None
    gone = exports.instance_id is None or ended is not None or exports.stopped
    so_far = None
    if exports.made_at is not None:
        so_far = spent(exports.bill, rest, since=exports.made_at, ended=ended, now=now)
    return CostReport(
        name=target.name,
        target=seen.target,
        life=seen.life,
        items=rest if gone else exports.bill,
        now=now,
        since=exports.made_at,
        expires_at=exports.expires_at,
        spent_usd=so_far,
        usage=usage,
    )


def left_over(target: CloudTarget) -> tuple[CostItem, ...]:
    """What bills while the machine is stopped, or once the cloud's timer has deleted it, until `down`."""
    spec, exports = target.spec(), target.exports
    return () if spec is None else residual_items(spec, exports.disk_gib or 0, stopped=exports.stopped)


def known_usage(target: Deployed) -> Usage | None:
    """None where the endpoint cannot be asked from here."""
    from provision.usage import fetch_usage

    try:
        return fetch_usage(target.access())
    except DeployctlError as error:
        say(f"tokens are not known: {error}")
        return None


def keep_budget(target: Deployed, report: CostReport, budget: float, *, yes: bool) -> int | None:
    """Brings the end forward where the budget asks for it; when that is, else None. Raises UsageError."""
    from provision.cloud import CloudTarget

    if not isinstance(target, CloudTarget):
        say(f"{target.name} costs nothing: no budget ends it")
        return None
    if target.exports.instance_id is None or report.life == "stopped":
        raise NotRunningError(f"{target.name} is not running", next_command=f"deployctl down {target.name}")
    at = end_within(report, budget)
    if report.expires_at is not None and report.expires_at <= at:
        say(f"{target.name} ends before ${budget:.2f} are spent; nothing changed")
        return None
    from provision.cli.ask import confirm

    left = format_seconds(at - report.now)
    question = f"End {target.name} in {left}, when about ${budget:.2f} are spent?"
    confirm(question, yes=yes, command=f"deployctl cost {target.name} --budget {budget:g}")
    from provision.lease import leased
    from provision.state import this_command

    with leased(target, this_command(), say):
        bring_forward(target, at)
    say(f"the cloud ends the machine in {left}")
    return at


def bring_forward(target: CloudTarget, at: int) -> None:
    """The stack says so from now on, to the cloud's timer and to the machine."""
    from provision.rollout import bring_up

    target.agree()
    spec = target.spec()
    if spec is None:
        raise not_up(target.name)
    if spec.ttl_seconds == 0:  # without a TTL the program makes no timer
        spec = spec.model_copy(update={"ttl": f"{max(1, int(at - time.time()) // 60)}m"})
    bring_up(target, spec, dataclasses.replace(target.settings, expires_at=at), say)


def describe(report: CostReport) -> list[str]:
    """The report for people."""
    since = "" if report.since is None else f", made {format_seconds(report.now - report.since)} ago"
    lines = [f"{report.name} on {report.target}: {report.life}{since}"]
    width = max([18, *(len(item.name) for item in report.items)])
    for item in report.items:
        lines.append(f"  {item.name:<{width}}  {dollars(item.usd_per_hour, 4)}/h  {item.source}")
    lines.append(f"  {'together':<{width}}  {dollars(report.usd_per_hour, 4)}/h, estimate")
    if report.unknown:
        lines.append(f"  not counted, because unknown: {', '.join(report.unknown)}")
    lines.append(f"so far               {dollars(report.spent_usd)}")
    if report.usd_until_end is not None and report.expires_at is not None:
        left = format_seconds(report.expires_at - report.now)
        lines.append(f"until its end        {dollars(report.usd_until_end)} more, in {left}")
    elif report.target not in ("local", "host") and report.expires_at is None:
        lines.append("until its end        it has none: `deployctl cost --budget` or `deployctl down` makes one")
    return [*lines, *describe_tokens(report)]


def describe_tokens(report: CostReport) -> list[str]:
    usage = report.usage
    if usage is None:
        return []
    ago = "" if usage.seconds is None else f", {format_seconds(usage.seconds)} ago"
    lines = [
        f"tokens               {usage.prompt_tokens} in, {usage.generated_tokens} out since the server's start{ago}"
    ]
    if report.usd_per_million_tokens is not None:
        both, out = dollars(report.usd_per_million_tokens), dollars(report.usd_per_million_generated)
        lines.append(f"per million tokens   {both} (in and out), {out} of output alone")
    return lines


def dollars(value: float | None, digits: int = 2) -> str:
    return "unknown" if value is None else f"${value:.{digits}f}"


def as_json(report: CostReport) -> dict[str, object]:
    """The fields, the sums, and what a million tokens cost; null = unknown."""
    found = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    found["items"] = [dataclasses.asdict(item) for item in report.items]
    found["usage"] = None if report.usage is None else dataclasses.asdict(report.usage)
    sums = ("usd_per_hour", "usd_until_end", "usd_per_million_tokens", "usd_per_million_generated", "unknown")
    return found | {name: getattr(report, name) for name in sums}
