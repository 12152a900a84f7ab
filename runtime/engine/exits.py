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


def exit_code(serve: Callable[[], None]) -> int:
    """Runs `serve`; returns 0 or 78. Ends the process with 70 when something breaks."""
    try:
        serve()
    except ConfigError as error:
        return _bad_config(str(error), error.hint)
    except (UnsupportedModelError, CheckpointError) as error:
        return _bad_config(str(error), "choose another model, or repair the folder")
    except OutOfMemoryError as error:
        return _bad_config(str(error), "set a smaller kv_cache_gib, max_model_len or max_num_seqs")
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(CRASHED)
    return 0


def crash(reason: str) -> None:
    """Ends the process now, from any thread, whatever the others wait for."""
    print(f"error: {reason}", file=sys.stderr, flush=True)
    os._exit(CRASHED)


def _bad_config(reason: str, hint: str) -> int:
    print(f"error: {reason} | hint: {hint}", file=sys.stderr, flush=True)
    return BAD_CONFIG
