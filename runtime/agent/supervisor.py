"""Local stand-in for systemd: owns the listening socket and keeps agent, server and engine running.

One thread, one selector loop. The socket is bound before anything else and passed to the server by
LISTEN_FDS, so server and engine can be replaced without a refused connection. Units die with the supervisor
(see child.py).

`machine/supervisor.json` says who supervises, for the CLI too:

    {"pid": 1234, "started_at": 5678, "host": "127.0.0.1", "port": 8000}

`started_at` is field 22 of /proc/<pid>/stat (clock ticks after boot). The supervisor is alive exactly if that
process exists with that number; else the file is stale and the pid may be anyone's.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runtime.agent.control import SOCKET_NAME, Reply, Request, decode_request, encode_line
from runtime.agent.logs import LogFile
from runtime.agent.process import UnitProcess
from runtime.agent.releases import ReleaseError, Releases
from runtime.agent.rundir import lock_state, make_run_dir, remove_run_dir
from runtime.agent.units import RELEASE_MARK, RestartPolicy, UnitError, UnitSpec
from runtime.deployment import Struct
from runtime.handover import announced_pid, start_ticks
from runtime.mailbox import (
    CURRENT,
    KEYS,
    STATUS,
    FolderMailbox,
    Phase,
    decode_current,
    decode_status,
    encode_status,
    write_atomic,
)

EXIT_CANNOT_LISTEN = 3
EXIT_ALREADY_RUNNING = 4
RECORD_NAME = "supervisor.json"
BACKLOG = 1024
NOTIFY_NAME = "notify.sock"
STOP_ORDER = ("server", "engine", "agent")


class Record(Struct, frozen=True):
    """`machine/supervisor.json`; see the module's docstring."""

    pid: int
    started_at: int
    host: str
    port: int


def read_record(state: Path) -> Record | None:
    """The live supervisor of a machine folder; None when there is none or the file is stale."""
    try:
        record = msgspec.json.decode((state / RECORD_NAME).read_bytes(), type=Record)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return record if start_ticks(record.pid) == record.started_at else None


def standard_units(state: Path, mailbox: Path, run_dir: Path) -> tuple[UnitSpec, ...]:
    """The three units of a deployment, as `deployctl-runtime` commands of this interpreter."""
    command = (sys.executable, "-m", "runtime.cli")
    release = ("--release", RELEASE_MARK, "--run", str(run_dir))
    files = ("--keys", str(mailbox / KEYS), "--status", str(mailbox / STATUS))
    place = ("--state", str(state), "--mailbox", str(mailbox))
    return (
        UnitSpec("agent", (*command, "agent", *place), stop_s=3.0),
        UnitSpec("server", (*command, "server", *release, *files), listens=True, stop_s=6.0),
        UnitSpec("engine", (*command, "engine", *release), autostart=False, stop_s=5.0),
    )


@dataclass(slots=True)
class _Connection:
    """A control client. `waits_for` is set while a request is not answered yet."""

    socket: socket.socket
    received: bytes = b""
    waits_for: Callable[[], Reply | None] | None = None


class Supervisor:
    """Runs until SIGTERM, SIGINT or `shutdown`; then stops the units in order and leaves no socket behind."""

    def __init__(
        self,
        state: Path,
        mailbox: Path,
        listener: socket.socket,
        units: tuple[UnitSpec, ...],
        policy: RestartPolicy | None = None,
    ) -> None:
        self._state = state
        self._mailbox = mailbox
        self._listener = listener
        self._log = LogFile(state / "logs" / "supervisor.log")
        self._units = {
            spec.name: UnitProcess(
                spec,
                LogFile(state / "logs" / f"{spec.name}.log"),
                current=state / "current",
                listen_fd=listener.fileno(),
                policy=policy or RestartPolicy(),
                notify_path=state / "run" / NOTIFY_NAME,
                before_close=self._forget_output,
            )
            for spec in units
        }
        self._selector = selectors.DefaultSelector()
        self._connections: list[_Connection] = []
        self._stopping = False
        self._agent_lost = False

    def run(self) -> int:
        run_dir = make_run_dir(self._state)
        control = self._open_control(run_dir)
        notices = self._open_notices(run_dir)
        self._watch_signals()
        self._write_record()
        self._seed()
        for unit in self._units.values():
            if unit.spec.autostart and not (unit.spec.needs_release and not (self._state / "current").exists()):
                unit.start()
        while not (self._stopping and self._next_to_stop() is None):
            self._turn()
        self._answer_waiting()
        control.close()
        notices.close()
        self._say_stopped()
        remove_run_dir(self._state)
        (self._state / RECORD_NAME).unlink(missing_ok=True)
        self._log.line("stopped")
        return 0

    def _turn(self) -> None:
        """One round: start what is due, wait for something to happen, deal with it."""
        if self._stopping and (unit := self._next_to_stop()) is not None:
            unit.stop()
        now = time.monotonic()
        for unit in self._units.values():
            unit.tick(now)
        self._follow_outputs()
        self._answer_waiting()
        if self._stopping and self._next_to_stop() is None:
            return
        for key, _ in self._selector.select(self._time_to_next(now)):
            key.data()
        now = time.monotonic()
        for unit in self._units.values():
            if unit.reap(now):
                self._log.line(f"{unit.spec.name} ended: now {unit.state}, exit code {unit.exit_code}")
        self._notice_lost_agent()

    def _time_to_next(self, now: float) -> float | None:
        deadlines = [unit.deadline for unit in self._units.values() if unit.deadline is not None]
        return max(0.0, min(deadlines) - now) if deadlines else None

    def _next_to_stop(self) -> UnitProcess | None:
        ordered = sorted(
            self._units, key=lambda name: STOP_ORDER.index(name) if name in STOP_ORDER else len(STOP_ORDER)
        )
        return next((self._units[name] for name in ordered if self._units[name].is_alive), None)

    def _follow_outputs(self) -> None:
        """Registers the pipes of units that have started since the last look."""
        for unit in self._units.values():
            for output, read in unit.outputs():
                if output not in self._selector.get_map():
                    self._selector.register(output, selectors.EVENT_READ, read)

    def _forget_output(self, fd: int) -> None:
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def _watch_signals(self) -> None:
        reader, writer = socket.socketpair()
        for end in (reader, writer):
            end.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._wakeup = (reader, writer)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self._begin_stop())
        self._selector.register(reader, selectors.EVENT_READ, lambda: reader.recv(4096))

    def _begin_stop(self) -> None:
        """The second time, nobody is waited for."""
        if self._stopping:
            for unit in self._units.values():
                unit.kill()
        self._stopping = True

    def _open_control(self, run_dir: Path) -> socket.socket:
        control = bind_private(run_dir / SOCKET_NAME, socket.SOCK_STREAM)
        control.listen()
        self._selector.register(control, selectors.EVENT_READ, lambda: self._accept(control))
        return control

    def _open_notices(self, run_dir: Path) -> socket.socket:
        """Where a server says that it has taken over; see `runtime.handover.notify`."""
        notices = bind_private(run_dir / NOTIFY_NAME, socket.SOCK_DGRAM)
        self._selector.register(notices, selectors.EVENT_READ, lambda: self._take_notice(notices))
        return notices

    def _take_notice(self, notices: socket.socket) -> None:
        try:
            pid = announced_pid(notices.recv(4096))
        except BlockingIOError:
            return
        for unit in self._units.values():
            if pid is not None:
                unit.promote(pid)

    def _accept(self, control: socket.socket) -> None:
        try:
            accepted, _ = control.accept()
        except BlockingIOError:
            return
        accepted.setblocking(False)
        connection = _Connection(accepted)
        self._connections.append(connection)
        self._selector.register(accepted, selectors.EVENT_READ, lambda: self._receive(connection))

    def _receive(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        connection.received += data
        line, newline, rest = connection.received.partition(b"\n")
        if newline and connection.waits_for is None:
            connection.received = rest
            try:
                connection.waits_for = self._act(decode_request(line))
            except (msgspec.DecodeError, UnitError) as error:
                refusal = Reply(ok=False, error=str(error))
                connection.waits_for = lambda: refusal

    def _act(self, request: Request) -> Callable[[], Reply | None]:
        """Begins a request; the result gives the reply once it is done. Raises UnitError."""
        if request.op == "shutdown":
            self._stopping = True
            return lambda: Reply(ok=True)
        unit = self._units.get(request.unit or "")
        if unit is None:
            raise UnitError(f"there is no unit {request.unit!r}; there are: {', '.join(self._units)}")
        if request.op == "state":
            return lambda: Reply(ok=True, unit=unit.snapshot())
        if self._stopping:
            raise UnitError("the supervisor is stopping")
        self._log.line(f"{request.op} {request.unit}")
        if request.op == "stop":
            unit.stop()
            return lambda: None if unit.is_alive else Reply(ok=True, unit=unit.snapshot())
        {"restart": unit.restart, "replace": unit.replace}.get(request.op, unit.start)()
        return lambda: None if unit.state == "stopping" else Reply(ok=True, unit=unit.snapshot())

    def _answer_waiting(self) -> None:
        for connection in list(self._connections):
            if connection.waits_for is None or (reply := connection.waits_for()) is None:
                continue
            connection.waits_for = None
            connection.socket.settimeout(1.0)
            try:
                connection.socket.sendall(encode_line(reply))
                connection.socket.setblocking(False)
            except OSError:
                self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self._connections.remove(connection)

    def _write_record(self) -> None:
        host, port = self._listener.getsockname()[:2]
        ticks = start_ticks(os.getpid())
        record = Record(pid=os.getpid(), started_at=ticks or 0, host=host, port=port)
        write_atomic(self._state / RECORD_NAME, msgspec.json.encode(record))
        self._log.line(f"supervisor {record.pid} listens on {host}:{port}")

    def _seed(self) -> None:
        """Without a usable release the server waits for the agent, which reports what is wrong."""
        mailbox = FolderMailbox(self._mailbox)
        data = mailbox.get(CURRENT)
        if data is None:
            return
        try:
            Releases(self._state).seed(mailbox, decode_current(data))
        except (ReleaseError, msgspec.DecodeError) as error:
            self._log.line(str(error))

    def _notice_lost_agent(self) -> None:
        """Only the agent writes the status; when it is given up, this is the one place left to say so."""
        agent = self._units.get("agent")
        lost = agent is not None and agent.state == "failed"
        if agent is not None and lost and not self._agent_lost:
            last = agent.log.tail[-1] if agent.log.tail else "no output"
            self._rewrite_status(
                error=f"the agent keeps exiting with code {agent.exit_code}: {last}",
                hint="see `deployctl logs agent`, then run `deployctl down` and `deployctl up` again",
            )
        self._agent_lost = lost

    def _say_stopped(self) -> None:
        """Unless the agent has said so, with its reason."""
        data = FolderMailbox(self._mailbox).get(STATUS)
        if data is not None and decode_status(data).phase != "stopped":
            self._rewrite_status(phase="stopped")

    def _rewrite_status(self, *, phase: Phase | None = None, error: str | None = None, hint: str | None = None) -> None:
        mailbox = FolderMailbox(self._mailbox)
        data = mailbox.get(STATUS)
        if data is None:
            return
        status = decode_status(data)
        changed = msgspec.structs.replace(
            status,
            phase=phase or status.phase,
            percent=None,
            eta_s=None,
            error=error,
            hint=hint,
            updated_at=time.time(),
        )
        mailbox.put(STATUS, encode_status(changed))


def bind_private(path: Path, kind: socket.SocketKind) -> socket.socket:
    """A unix socket of this user alone, not blocking, in place of what an earlier supervisor left there."""
    path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, kind)
    bound.bind(str(path))
    path.chmod(0o600)
    bound.setblocking(False)
    return bound


def open_listener(host: str, port: int) -> socket.socket:
    """The public socket, listening. Raises OSError when it cannot be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def run(state: Path, mailbox: Path, host: str, port: int) -> int:
    """`deployctl-runtime supervise`. Returns an exit code; says on stderr why it could not begin."""
    state, mailbox = state.absolute(), mailbox.absolute()
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if lock_state(state) is None:
        record = read_record(state)
        who = f"process {record.pid}" if record else "another process"
        print(f"error: {who} supervises {state} already | hint: run `deployctl status`", file=sys.stderr)
        return EXIT_ALREADY_RUNNING
    try:
        listener = open_listener(host, port)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        print(
            f"error: cannot listen on {host}:{port}: {reason} | hint: choose another port with --port, "
            f"or see who has it with `ss -ltnp 'sport = :{port}'`",
            file=sys.stderr,
        )
        return EXIT_CANNOT_LISTEN
    with listener:
        units = standard_units(state, mailbox, make_run_dir(state))
        return Supervisor(state, mailbox, listener, units).run()
