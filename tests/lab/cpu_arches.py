"""The CPU kernels as GCC builds them for other CPUs than this one."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

import pytest

from runtime.ops import cpu_kernels

# What GCC builds for: this very CPU, AVX-512 with its dot product, AVX2 with and without one, and none of it. What this
# CPU lacks is skipped.
ARCHES = {
    "native": (), "icelake-server": ("avx512_vnni", "gfni"), "alderlake": ("avx_vnni", "gfni"),
    "haswell": ("avx2", "fma"), "x86-64": (),
}  # fmt: skip
SELDOM = ("icelake-server", "alderlake", "x86-64")
PARAMS = [pytest.param(arch, marks=[pytest.mark.slow] if arch in SELDOM else []) for arch in ARCHES]


def require_compiler() -> None:
    """The kernels are optional, so a machine without a compiler skips their tests; on CI they fail."""
    if shutil.which("g++") is None and shutil.which("c++") is None and not os.environ.get("CI"):
        pytest.skip("no C++ compiler on PATH; the kernels are optional (apt-get install g++)")


def library(arch: str) -> ctypes.CDLL:
    require_compiler()
    flags = Path("/proc/cpuinfo").read_text().split()
    if missing := [flag for flag in ARCHES[arch] if flag not in flags]:
        pytest.skip(f"this CPU has no {missing[0]}")
    built = cpu_kernels.load_library(arch)
    assert built is not None, "a compiler is there, so the kernels must build"
    return built
