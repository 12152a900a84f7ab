"""`deployctl monitor`."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from json import dumps as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from provision.cli.clouds import cloud_targets
from provision.cli.names import NameArgument, NameOption, find_target, one_name
from provision.cli.output import JsonFlag, emit, emit_json, say
from provision.errors import DeployctlError, FailedError, MissingPartError, NotFoundError, PortTakenError
from provision.monitoring import TTFT_P95_S, ConfigFile, Thresholds, Watched, config_files, prometheus_argv
from provision.state import cache_root, list_states

if TYPE_CHECKING:
    from provision.target import Deployed

app = typer.Typer(add_completion=False)
POLL_S = 5.0
LOOK_AGAIN_S = 60.0  # at which deployments there are, and when they end
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


@app.command()
def monitor(
    name: NameArgument = None,
    name_option: NameOption = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where Prometheus' own page is, on this machine.")] = 9090,
    ttft_p95: Annotated[
        float,
        typer.Option(min=0.001, help="Alert when the 95th percentile to the first token is over so many seconds."),
    ] = TTFT_P95_S,
    write: Annotated[
        Path | None,
        typer.Option(
            help="Only write the configuration into this folder, for a Prometheus of your own.", show_default=False
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Run Prometheus on the deployments, and print alerts as they come and go. Ctrl-C ends it; its data stays.

    Watches NAME, or all deployments that answer. With --json each alert is one JSON object in a line of its own.
    """
    wanted = one_name(name, name_option)
    thresholds = Thresholds(ttft_p95)
    if write is not None:
        write_files(config_files(watch(wanted), thresholds, write.absolute()), write)
        config = str(write / "prometheus.yml")
        emit_json({"config": config}) if json else emit(config)
        return
    program = shutil.which("prometheus")
    if program is None:
        raise MissingPartError(
            "there is no `prometheus` on PATH",
            why="deployctl runs the distribution's; it needs no service of its own",
            next_command="sudo apt-get install --no-install-recommends prometheus",
        )
    check_port(port)
    folder = cache_root() / "monitor" / (wanted or "all")
    watched = watch(wanted)
    write_files(config_files(watched, thresholds, folder), folder)
    with (folder / "prometheus.log").open("wb") as log:
        argv = prometheus_argv(program, folder, folder / "data", port)
        running = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            tell = tell_json if json else tell_people
            attend(running, f"http://127.0.0.1:{port}", wanted, watched, thresholds, folder, tell)
        except KeyboardInterrupt:
            say("stopped; the data stays in " + str(folder / "data"))
        finally:
            running.terminate()
            try:
                running.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


@dataclass(frozen=True, slots=True, order=True)
class Alert:
    """One alert of one deployment. `next`: the command to type."""

    name: str
    deployment: str
    severity: str
    summary: str
    next: str


Tell = Callable[[Alert, bool], None]
"""Told (alert, whether it fires now or is over)."""


def tell_people(alert: Alert, firing: bool) -> None:
    at = time.strftime("%H:%M:%S")
    emit(f"{at} {alert.severity}: {alert.summary}; next: {alert.next}" if firing else f"{at} over: {alert.summary}")


def tell_json(alert: Alert, firing: bool) -> None:
    emit(json_text({"at": time.time(), "firing": firing} | dataclasses.asdict(alert)))


def watch(name: str | None) -> list[Watched]:
    """The named deployment, or all that have an endpoint. Raises NotFoundError when there is none."""
    if name is not None:
        return [_watched(find_target(name, None))]
    from provision.cli.names import target_of

    on_clouds, problems = cloud_targets()
    for problem in problems:
        say(f"not watched: {problem}")
    targets: list[Deployed] = [*(target_of(state) for state in list_states()), *on_clouds]
    found = []
    for target in targets:
        try:
            found.append(_watched(target))
        except DeployctlError as error:
            say(f"not watched: {target.name}: {error}")
    if not found:
        raise NotFoundError("there is nothing to watch", why="no deployment is up", next_command="deployctl up")
    return found


def write_files(files: Sequence[ConfigFile], folder: Path) -> None:
    """Secret files are 0600 from their first byte."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for file in files:
        path = folder / file.name
        path.unlink(missing_ok=True)
        path.touch(mode=0o600 if file.secret else 0o644)
        path.write_text(file.text)


def check_port(port: int) -> None:
    """Raises PortTakenError."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise PortTakenError(
                f"port {port} is taken", why=error.strerror, next_command=f"deployctl monitor --port {port + 1}"
            ) from error


def attend(
    running: subprocess.Popen[bytes],
    url: str,
    name: str | None,
    watched: list[Watched],
    thresholds: Thresholds,
    folder: Path,
    tell: Tell,
) -> None:
    """Until Ctrl-C: prints alerts, and follows deployments that come, go or get another end. Raises FailedError."""
    import httpx

    with httpx.Client(base_url=url, timeout=10.0, trust_env=False) as client:
        _wait_ready(client, running, folder)
        say(f"{url}  watching {', '.join(item.name for item in watched)}; Ctrl-C ends it")
        seen: frozenset[Alert] = frozenset()
        looked_at = time.monotonic()
        while True:
            _refuse_ended(running, folder)
            now = _firing(client)
            for alert in sorted(now - seen):
                tell(alert, True)
            for alert in sorted(seen - now):
                tell(alert, False)
            seen = now
            if time.monotonic() - looked_at > LOOK_AGAIN_S:
                looked_at = time.monotonic()
                watched = _follow(client, name, watched, thresholds, folder)
            time.sleep(POLL_S)


def _follow(client: Any, name: str | None, watched: list[Watched], limits: Thresholds, folder: Path) -> list[Watched]:
    try:
        found = watch(name)
    except DeployctlError:
        return watched  # what is down is what the alerts are for
    known = {item.name: item for item in watched} | {item.name: item for item in found}
    if list(known.values()) == watched:
        return watched
    write_files(config_files(list(known.values()), limits, folder), folder)
    client.post("/-/reload").raise_for_status()
    say(f"now watching {', '.join(known)}")
    return list(known.values())


def _firing(client: Any) -> frozenset[Alert]:
    """What fires now."""
    alerts = client.get("/api/v1/alerts").raise_for_status().json()["data"]["alerts"]
    return frozenset(
        Alert(
            name=alert["labels"]["alertname"],
            deployment=alert["labels"].get("deployment", ""),
            severity=alert["labels"]["severity"],
            summary=alert["annotations"]["summary"],
            next=alert["annotations"]["next"],
        )
        for alert in alerts
        if alert["state"] == "firing"
    )


def _wait_ready(client: Any, running: subprocess.Popen[bytes], folder: Path) -> None:
    import httpx

    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        _refuse_ended(running, folder)
        try:
            if client.get("/-/ready").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise FailedError("Prometheus does not get ready", next_command=f"tail {folder / 'prometheus.log'}")


def _refuse_ended(running: subprocess.Popen[bytes], folder: Path) -> None:
    if running.poll() is not None:
        log = folder / "prometheus.log"
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise FailedError(f"Prometheus ended with {running.returncode}", why=tail, next_command=f"tail {log}")


def _watched(target: Deployed) -> Watched:
    access = target.access()
    return Watched(target.name, access.base_url, access.api_key, access.certificate, target.observe().expires_at)
