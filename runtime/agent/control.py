"""The supervisor's control socket: `<run>/control.sock`, mode 0600, one JSON line per request and per reply.

► {"op": "start" | "stop" | "restart" | "replace" | "state", "unit": "engine"}   ► {"op": "shutdown"}
◄ {"ok": true, "unit": {…UnitState…}}                                ◄ {"ok": false, "error": "…"}
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Literal

import msgspec

from runtime.agent.units import UnitError, UnitState
from runtime.deployment import Struct

SOCKET_NAME = "control.sock"
REPLY_TIMEOUT_S = 30.0  # a stop may take a unit's whole grace time

Op = Literal["start", "stop", "restart", "replace", "state", "shutdown"]


class Request(Struct, frozen=True):
    op: Op
    unit: str | None = None


class Reply(Struct, frozen=True):
    ok: bool
    unit: UnitState | None = None
    error: str | None = None


def encode_line(message: Request | Reply) -> bytes:
    return msgspec.json.encode(message) + b"\n"


def decode_request(line: bytes) -> Request:
    return msgspec.json.decode(line, type=Request)


class SupervisorClient:
    """UnitManager over the control socket. One connection per call."""

    def __init__(self, run_dir: Path, timeout_s: float = REPLY_TIMEOUT_S) -> None:
        self._path = str(run_dir.resolve() / SOCKET_NAME)
        self._timeout_s = timeout_s

    def start(self, unit: str) -> None:
        self._ask(Request(op="start", unit=unit))

    def stop(self, unit: str) -> None:
        self._ask(Request(op="stop", unit=unit))

    def restart(self, unit: str) -> None:
        self._ask(Request(op="restart", unit=unit))

    def replace(self, unit: str) -> None:
        self._ask(Request(op="replace", unit=unit))

    def state(self, unit: str) -> UnitState:
        reply = self._ask(Request(op="state", unit=unit))
        if reply.unit is None:
            raise UnitError(f"the supervisor gave no state for unit {unit}")
        return reply.unit

    def shutdown(self) -> None:
        """Returns once the supervisor has begun to stop everything."""
        self._ask(Request(op="shutdown"))

    def _ask(self, request: Request) -> Reply:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as conn:
                conn.settimeout(self._timeout_s)
                conn.connect(self._path)
                conn.sendall(encode_line(request))
                with conn.makefile("rb") as lines:
                    line = lines.readline()
            reply = msgspec.json.decode(line, type=Reply)
        except (OSError, msgspec.DecodeError) as error:
            raise UnitError(f"the supervisor does not answer on {self._path}: {error}") from error
        if not reply.ok:
            raise UnitError(reply.error or f"the supervisor refused {request.op} {request.unit}")
        return reply
