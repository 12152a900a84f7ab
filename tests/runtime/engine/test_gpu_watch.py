"""Readings of GPUs: NVIDIA's own binding against a library of NVML's signatures (tests/lab/nvml.c)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from runtime.ipc import GpuUse

ROOT = Path(__file__).parents[3]
GIB = 2**30
# The engine's own thread, until it has read or has given up; the reading as JSON.
PROGRAM = """
import threading, time
import msgspec
from runtime.engine.gpu import GpuWatch
watch = GpuWatch(period_s=0.01)
deadline = time.monotonic() + 30
while (taken := watch.take()) is None and any(t.name == "gpus" for t in threading.enumerate()):
    assert time.monotonic() < deadline
    time.sleep(0.01)
print(msgspec.json.encode(None if taken is None else taken.gpus).decode())
"""


def reading(library_path: Path) -> str:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libnvidia-ml.so.1."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None and os.environ.get("CI") == "true":
        pytest.fail("CI must have a C compiler: apt-get install gcc")
    if compiler is None:
        pytest.skip("no C compiler here to build a library with NVML's names: apt-get install gcc")
    folder = tmp_path_factory.mktemp("nvml")
    source = ROOT / "tests" / "lab" / "nvml.c"
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(folder / "libnvidia-ml.so.1")], check=True)
    return folder


def test_each_gpu_has_name_memory_and_utilization_and_what_is_not_known_is_absent(driver: Path) -> None:
    assert msgspec.json.decode(reading(driver), type=tuple[GpuUse, ...]) == (
        GpuUse(0, "NVIDIA A10", 20 * GIB, 24 * GIB, 0.75),
        GpuUse(1, "NVIDIA A100-SXM4-80GB", 8 * GIB, 80 * GIB, None),
    )


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a driver")
def test_without_a_driver_there_is_no_reading(tmp_path: Path) -> None:
    assert reading(tmp_path) == "null"
