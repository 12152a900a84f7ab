"""Is the endpoint ready, and if not, how far is it: `status.json` merged with what the engine says."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from runtime.mailbox import PHASES, Status, decode_status
from runtime.server.engine_client import EngineClient
from runtime.server.errors import Unready
from runtime.server.hold import Hold
from runtime.server.model import Model

logger = logging.getLogger(__name__)

_BEFORE_LOAD = PHASES[: PHASES.index("load")]
_HELD_HINT = "another release takes over; new requests wait"
_LOGS_HINT = "see the engine's log (deployctl logs)"


class Readiness:
    """Answers for `/health` and the 503 bodies."""

    def __init__(self, path: Path, engine: EngineClient, model: Model, hold: Hold) -> None:
        self._path = path
        self._engine = engine
        self._model = model
        self.hold = hold

    def unready(self) -> Unready | None:
        """None when requests are taken.

        The agent leads until the phase `load`; from there on the engine's own frames are fresher.
        """
        found = self._unready()
        if found is not None and self.hold.on:
            return msgspec.structs.replace(found, hint="; ".join(filter(None, (found.hint, _HELD_HINT))))
        return found

    def _unready(self) -> Unready | None:
        if self._engine.serving and self._model.tokenizer is not None:
            return self.hold.unready()
        status = self._read()
        if (
            status is not None
            and not self._engine.connected
            and (status.error is not None or status.phase in _BEFORE_LOAD or status.phase == "stopped")
        ):
            return Unready(status.phase, status.percent, status.eta_s, status.error, status.hint)
        if self._engine.hung:
            silent = f"the engine has made no step for {self._engine.silent_s:.0f} s"
            return Unready("serve", error=silent, hint=_LOGS_HINT)
        if self._engine.serving:
            return Unready("serve", error=self._model.error, hint=self._model.hint)
        return self._loading(status)

    def _loading(self, status: Status | None) -> Unready:
        if not self._engine.connected:
            if self._engine.was_ready:
                return Unready("load", 0.0, error="the engine stopped and is started again", hint=_LOGS_HINT)
            eta_s = None if status is None else status.eta_s
            return Unready("load", 0.0, eta_s)
        progress = self._engine.progress
        percent = 0.0 if progress is None else progress.percent
        eta_s = None if progress is None else progress.eta_s
        return Unready("load", percent, eta_s, self._engine.fault)

    def _read(self) -> Status | None:
        try:
            return decode_status(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            logger.warning("%s: %s", self._path, error)
            return None
