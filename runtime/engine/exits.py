"""How an engine process ends, the driver and the other ranks alike.

0 asked to stop · 70 crashed, starting again may help · 78 the configuration or the model cannot work, starting again
cannot help: the last line on stderr is then `error: … | hint: …`.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from runtime.engine.memory import OutOfMemoryError
from runtime.model.checkpoint import CheckpointError
from runtime.model_spec import UnsupportedModelError

CRASHED = 70  # sysexits EX_SOFTWARE
BAD_CONFIG = 78  # sysexits EX_CONFIG


class ConfigError(ValueError):
    """Starting again cannot help."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


def run_to_end(serve: Callable[[], None]) -> None:
    """Runs `serve`. What it raises ends the process, here and now: other threads and ranks must not have the last
    word on the status."""
    try:
        serve()
    except ConfigError as error:
        _give_up(str(error), error.hint)
    except (UnsupportedModelError, CheckpointError) as error:
        _give_up(str(error), "choose another model, or repair the folder")
    except OutOfMemoryError as error:
        _give_up(str(error), "set a smaller kv_cache_gib, max_model_len or max_num_seqs")
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(CRASHED)


def crash(reason: str) -> None:
    """Ends the process now, from any thread, whatever the others wait for."""
    print(f"error: {reason}", file=sys.stderr, flush=True)
    os._exit(CRASHED)


def _give_up(reason: str, hint: str) -> None:
    print(f"error: {reason} | hint: {hint}", file=sys.stderr, flush=True)
    os._exit(BAD_CONFIG)
