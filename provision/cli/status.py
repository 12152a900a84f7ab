"""`deployctl status`."""

from __future__ import annotations

import dataclasses

import typer

from provision.cli.names import NameArgument, NameOption, find_target
from provision.cli.output import JsonFlag, emit, emit_json
from provision.cli.present import machine_text, money_text
from provision.errors import EndpointError, FailedError, NotReadyError, NotRunningError
from provision.progress import format_seconds, progress_text
from provision.target import Observation

app = typer.Typer(add_completion=False)


@app.command()
def status(name: NameArgument = None, name_option: NameOption = None, json: JsonFlag = False) -> None:
    """Show phase, release, model, endpoint and processes of a deployment.

    Exit codes: 0 ready, 9 failed, 10 not running, 11 still starting, 12 not known.
    """
    seen = find_target(name, name_option).observe()
    if json:
        emit_json(dataclasses.asdict(seen))
    else:
        emit("\n".join(describe(seen)))
    code = exit_code(seen)
    if code:
        raise typer.Exit(code)


def exit_code(seen: Observation) -> int:
    """0 for a deployment that serves, else the code of what keeps it from serving."""
    if seen.life == "ready":
        return 0
    if seen.life == "starting":
        return NotReadyError.exit_code
    if seen.life == "unknown":
        return EndpointError.exit_code
    return FailedError.exit_code if seen.life == "failed" else NotRunningError.exit_code


def describe(seen: Observation) -> list[str]:
    """The lines of `status` for people."""
    rows = [("deployment", f"{seen.name} on {seen.target}"), ("state", life_text(seen))]
    if seen.error:
        rows.append(("error", seen.error))
    if seen.hint:
        rows.append(("hint", seen.hint))
    release = seen.release or seen.wanted_release
    if release:
        changing = f" (asked for: {seen.wanted_release})" if seen.wanted_release not in (None, release) else ""
        rows.append(("release", release + changing))
    if seen.model:
        rows.append(("model", seen.model))
    if seen.base_url:
        rows.append(("endpoint", seen.base_url))
    for process in seen.processes:
        up = f", up {format_seconds(process.uptime_s)}" if process.uptime_s is not None else ""
        rows.append((process.unit, f"pid {process.pid}{up}"))
    if seen.instance_id is not None:
        rows += [("machine", machine_text(seen)), ("price", money_text(seen))]
    elif seen.price_per_hour is not None:
        rows.append(("price", f"${seen.price_per_hour:.2f}/h"))
    if seen.life != "ready":
        rows.append(("next", next_command(seen)))
    return [f"{label:<11} {text}" for label, text in rows]


def life_text(seen: Observation) -> str:
    if seen.life == "starting":
        return f"starting: {progress_text(seen)}"
    if seen.life == "failed" and seen.phase:
        return f"failed in phase {seen.phase}"
    return "not running" if seen.life == "stopped" else seen.life


def next_command(seen: Observation) -> str:
    """What a person would type now to get on."""
    if seen.life == "failed":
        return f"deployctl logs {seen.name}"
    return f"deployctl up --name {seen.name}"
