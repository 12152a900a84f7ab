"""Packages of the distribution, by apt, with its progress watched instead of its time."""

from __future__ import annotations

from pathlib import Path

import msgspec

from runtime.agent.command import WORKER as COMMAND_WORKER
from runtime.agent.command import CommandJob
from runtime.agent.status import Report
from runtime.agent.worker import run_worker

STALL_S = 300.0
APT = ("apt-get", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3")


def update_argv() -> tuple[str, ...]:
    """Fresh cloud images come without lists of packages."""
    return (*APT, "update")


def install_argv(names: tuple[str, ...]) -> tuple[str, ...]:
    return (*APT, "install", "-y", "--no-install-recommends", *names)


def install_packages(names: tuple[str, ...], log: Path, proxy: str | None, report: Report) -> None:
    """Raises WorkerError with apt's last line, and whatever `report` raises."""
    for argv in (update_argv(), install_argv(names)):
        job = CommandJob(argv=argv, log=str(log), folder=str(log.parent), proxy=proxy)
        run_worker(COMMAND_WORKER, stdin=msgspec.json.encode(job), report=report, stall_s=STALL_S)
