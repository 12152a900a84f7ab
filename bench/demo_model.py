"""The demo model for the measurements: converted once, kept beside the peer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.output import ROOT
from bench.peer import default_folder
from bench.servers import BenchError


def demo_model() -> Path:
    """Its folder. Raises BenchError."""
    folder = default_folder().parent / "demo-model-bfloat16"  # before, it was kept in float32
    done = subprocess.run(
        [sys.executable, "-m", "runtime.demo_model", str(folder)], stdout=sys.stderr, check=False, cwd=ROOT
    )
    if done.returncode:
        raise BenchError("the demo model could not be converted; see above")
    return folder
