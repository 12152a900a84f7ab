"""Language hosts for the test engine: what starts the program, with what Pulumi's host puts into its environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runtime.agent.child import bound_argv
from tests.lab.nursery import nursery
from tests.lab.pulumi_model import Ended, Program

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(__file__).with_name("program_host.py")
TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class ProcessHost:
    """Runs the program in a new interpreter, as Pulumi does; it ends with the engine, as it would with Pulumi's."""

    environment: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, program: Program) -> Ended:
        done = subprocess.run(
            bound_argv((sys.executable, "-W", "ignore", str(HOST), *arguments(program))),
            cwd=program.folder,
            env={**environment(program), **self.environment},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        return Ended(done.returncode == 0, done.stdout + done.stderr)


class WarmHost:
    """Runs each program in a process of its own that the nursery has forked: a quarter of the time."""

    def __call__(self, program: Program) -> Ended:
        done = subprocess.run(
            [*nursery().argv("program"), *arguments(program)],
            cwd=program.folder,
            env=environment(program),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        return Ended(done.returncode == 0, done.stdout + done.stderr)


def arguments(program: Program) -> list[str]:
    """The command line of `program_host`."""
    flags = {
        "--project": program.project,
        "--stack": program.stack,
        "--root": str(program.root),
        "--monitor": program.address,
        "--engine": program.address,
        "--dry-run": str(program.preview).lower(),
    }
    return [*(part for item in flags.items() for part in item), str(program.folder)]


def environment(program: Program) -> dict[str, str]:
    given = {
        "PULUMI_PROJECT": program.project,
        "PULUMI_STACK": program.stack,
        "PULUMI_CONFIG": json.dumps(dict(program.config)),
        "PULUMI_CONFIG_SECRET_KEYS": json.dumps(program.secret_keys),
        "PYTHONPATH": str(ROOT),
    }
    return {**os.environ, **given}
