"""The units of a VM, owned by systemd: `runtime.agent.units.UnitManager` over systemctl and journalctl.

server, engine, agent  ↔  deployctl-server.service, …. systemd restarts a unit that exits; `failed` is what systemd has
given up: too many starts, or an exit code after which a restart cannot help.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from runtime.agent.logs import TAIL_LINES
from runtime.agent.units import State, UnitError, UnitState
from runtime.vm import RUN_DIR

UNITS = ("agent", "server", "engine")
SOCKETS = {"server": "deployctl.socket"}  # given up together with its service, so it is taken up again with it
PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "MainPID",
    "NRestarts",
    "ExecMainCode",
    "ExecMainStatus",
    "InvocationID",
)
TIMEOUT_S = 60.0  # longer than any TimeoutStopSec of our units
_EXITED = 1  # CLD_EXITED of waitid(2); killed and dumped are 2 and 3
_STATES: dict[str, State] = {
    "active": "running",
    "reloading": "running",
    "activating": "waiting",
    "deactivating": "stopping",
    "inactive": "stopped",
    "failed": "failed",
}

Call = Callable[[tuple[str, ...]], str]
"""Runs a command and returns its output; raises UnitError when it fails."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What `systemctl show` says of one unit. `exit_code`: of the main process's last end, -9 = killed by signal 9."""

    state: State
    pid: int | None
    restarts: int
    exit_code: int | None
    invocation: str


@dataclass(slots=True)
class _Counted:
    """Exits of one unit, never fewer than before: systemd forgets restarts whenever a unit is started by hand.

    After the limit of starts it is one too many, because systemd counts the start that it refuses.
    """

    base: int = 0
    restarts: int = 0
    failed: bool = False
    exit_code: int | None = None
    last_lines: tuple[str, ...] = field(default=())

    def add(self, shown: Shown) -> bool:
        """True when the unit has exited since the last look."""
        if shown.restarts < self.restarts:
            self.base += self.restarts
            self.restarts = 0
        gave_up = shown.state == "failed" and not self.failed
        exited = gave_up or shown.restarts > self.restarts
        self.restarts, self.failed = shown.restarts, shown.state == "failed"
        self.base += gave_up
        if shown.exit_code is not None:
            self.exit_code = shown.exit_code
        return exited


class Systemd:
    """`run_dir` holds `<unit>.release`, a copy of the link `current` that a unit makes at each start."""

    def __init__(self, run_dir: Path = RUN_DIR, call: Call | None = None) -> None:
        self._run_dir = run_dir
        self._call = call or run_command
        self._counted = {unit: _Counted() for unit in UNITS}

    def start(self, unit: str) -> None:
        """Forgets earlier crashes. A unit that runs is left alone."""
        names = (*((SOCKETS[unit],) if unit in SOCKETS else ()), service(unit))
        self._forget(unit)
        self._call(("systemctl", "start", *names))

    def stop(self, unit: str) -> None:
        self._call(("systemctl", "stop", service(unit)))
        self._forget(unit)  # an end by SIGKILL or with another code than 0 was asked for: it is no failure

    def restart(self, unit: str) -> None:
        self._forget(unit)
        self._call(("systemctl", "restart", service(unit)))

    def replace(self, unit: str) -> None:
        """The unit's own `reload`: systemd knows no second process beside the one that runs."""
        if parse_show(self._call(show_command(unit))).state == "running":
            self._call(("systemctl", "reload", service(unit)))
        else:
            self.start(unit)

    def state(self, unit: str) -> UnitState:
        counted = self._counted[unit]
        shown = parse_show(self._call(show_command(unit)))
        if counted.add(shown) or shown.state in ("waiting", "failed"):
            counted.last_lines = parse_journal(self._call(journal_command(unit, shown.invocation)))
        return UnitState(
            name=unit,
            state=shown.state,
            pid=shown.pid,
            release=self._release(unit),
            exits=counted.base + counted.restarts,
            exit_code=counted.exit_code,
            last_lines=counted.last_lines,
        )

    def _forget(self, unit: str) -> None:
        names = (*((SOCKETS[unit],) if unit in SOCKETS else ()), service(unit))
        for name in names:
            try:
                self._call(("systemctl", "reset-failed", name))
            except UnitError:
                continue  # a unit that systemd has not loaded has nothing to forget
        self._counted[unit].failed = False

    def _release(self, unit: str) -> str | None:
        try:
            return os.path.basename(os.readlink(self._run_dir / f"{unit}.release"))
        except OSError:
            return None


def service(unit: str) -> str:
    """The name that systemd knows it by. Raises UnitError."""
    if unit not in UNITS:
        raise UnitError(f"there is no unit {unit!r}; valid are {', '.join(UNITS)}")
    return f"deployctl-{unit}.service"


def show_command(unit: str) -> tuple[str, ...]:
    return ("systemctl", "show", f"--property={','.join(PROPERTIES)}", service(unit))


def journal_command(unit: str, invocation: str) -> tuple[str, ...]:
    """The newest lines of a unit's own processes; of the start `invocation` alone, where it is known."""
    which = f"_SYSTEMD_INVOCATION_ID={invocation}" if invocation else f"_SYSTEMD_UNIT={service(unit)}"
    return ("journalctl", "--quiet", "--no-pager", f"--lines={TAIL_LINES}", "--output=json", which)


def parse_show(text: str) -> Shown:
    """Raises UnitError when it is not the answer of `show_command`."""
    values = dict(line.partition("=")[::2] for line in text.splitlines())
    try:
        if values["LoadState"] == "not-found":
            return Shown("stopped", None, 0, None, "")
        pid, code, status = (int(values[name]) for name in ("MainPID", "ExecMainCode", "ExecMainStatus"))
        return Shown(
            state=_STATES[values["ActiveState"]],
            pid=pid or None,
            restarts=int(values["NRestarts"]),
            exit_code=None if code == 0 else status if code == _EXITED else -status,
            invocation=values["InvocationID"],
        )
    except (KeyError, ValueError) as error:
        raise UnitError(f"systemctl show gave no answer that can be read ({error}): {text.strip()[:200]}") from None


def parse_journal(text: str) -> tuple[str, ...]:
    """Messages, newest last, of journalctl's JSON lines; a message with odd bytes comes as a list of numbers."""
    found = []
    for line in text.splitlines():
        message = json.loads(line).get("MESSAGE")
        found.append(bytes(message).decode(errors="replace") if isinstance(message, list) else str(message or ""))
    return tuple(message for message in found if message.strip())


def run_command(argv: tuple[str, ...]) -> str:
    """Raises UnitError with the command's last words."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnitError(f"{' '.join(argv[:3])}: {error}") from error
    if done.returncode != 0:
        raise UnitError(f"{' '.join(argv[:3])}: {done.stderr.strip() or f'exit {done.returncode}'}")
    return done.stdout
