"""A machine with AVX2 and nothing wider, played by a wider one: most laptops and many servers are like that.

Memory and caches stay what they are. Every library is asked to leave AVX-512 and AMX alone: torch's own kernels,
oneDNN, MKL, what GCC builds (our kernels, torch.compile's), and vLLM, which has a build of its kernels for AVX2.
"""

from __future__ import annotations

import os

from bench.output import ROOT

FOLDER = ROOT / "bench" / "avx2"
SETTINGS = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def is_narrow() -> bool:
    return SETTINGS.items() <= os.environ.items()


def narrow() -> None:
    """For all that this process starts from now on."""
    os.environ.update(SETTINGS)
    for name in ("PATH", "PYTHONPATH"):
        os.environ[name] = os.pathsep.join(filter(None, (str(FOLDER), os.environ.get(name))))
