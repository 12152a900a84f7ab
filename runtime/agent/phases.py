"""The gates before the weights: `python`, `disk`, `driver`, `runtime`. Each looks, changes nothing, and may
be repeated.

None of them imports torch: what is installed is read from the packages' metadata.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

from runtime.agent.status import PhaseError
from runtime.deployment import Deployment

MIN_PYTHON = (3, 11)
TORCH_FROM, TORCH_BELOW = (2, 11), (2, 14)  # the extra `runtime` of pyproject.toml; a test compares them
MIN_DRIVER = {12: (525, 60), 13: (580, 65)}  # by CUDA's major version (CUDA Toolkit release notes, table 2)
MARGIN_BYTES = 512 * 2**20  # logs, releases and a little air, beside what is fetched
NVIDIA_SMI_TIMEOUT_S = 30.0  # the first call after boot loads the driver's firmware
INSTALL = "pip install 'deployctl[runtime]'"


def check_python() -> None:
    """The interpreter and the distribution that this release needs. Raises PhaseError."""
    if sys.version_info[:2] < MIN_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        raise PhaseError(f"Python {found} is too old", "install Python 3.11 or newer", retry=False)
    if importlib.util.find_spec("runtime.engine") is None:
        raise PhaseError("deployctl's engine is not installed", f"run: {INSTALL}")


def check_disk(folder: Path, need_bytes: int, free_bytes: Callable[[Path], int] | None = None) -> None:
    """Room for `need_bytes` of weights plus a margin on the disk of `folder`. Raises PhaseError."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = (free_bytes or _free_bytes)(existing)
    need = need_bytes + MARGIN_BYTES
    if free < need:
        raise PhaseError(
            f"disk full: {need} bytes ({need / 2**30:.1f} GiB) are needed in {folder}, "
            f"{free} bytes ({free / 2**30:.1f} GiB) are free",
            f"free {(need - free) / 2**30:.1f} GiB there, or point XDG_CACHE_HOME or HF_HOME at a larger "
            "disk, and run `deployctl up` again",
        )


def check_driver(deployment: Deployment) -> None:
    """On `cuda`: the NVIDIA driver answers, is new enough, and shows enough GPUs. Raises PhaseError."""
    if deployment.engine.device != "cuda":
        return
    check_gpus(list_gpus(), deployment.engine.tensor_parallel, cuda_build())


def list_gpus() -> str:
    """One `driver_version, name` line per GPU. Raises PhaseError when no driver is there or it does not answer."""
    if shutil.which("nvidia-smi") is None:
        raise PhaseError(
            "nvidia-smi is not there: no NVIDIA driver is installed",
            "install the driver (Debian, Ubuntu: apt install nvidia-driver-580-server), or choose device cpu",
        )
    argv = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(argv, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise PhaseError("nvidia-smi hangs", "see `dmesg | grep -i nvrm`; restart the machine") from None
    if answer.returncode != 0:
        said = (answer.stdout + answer.stderr).strip().partition("\n")[0]
        raise PhaseError(f"nvidia-smi fails: {said}", "see `dmesg | grep -i nvrm`; a restart loads a new driver")
    return answer.stdout


def check_gpus(listing: str, tensor_parallel: int, cuda: str | None) -> None:
    """`listing`: see `list_gpus`. `cuda`: version that torch is built for, if it is installed. Raises PhaseError."""
    gpus = [line.split(",")[0].strip() for line in listing.splitlines() if line.strip()]
    if len(gpus) < tensor_parallel:
        raise PhaseError(
            f"{len(gpus)} GPUs are visible, tensor_parallel is {tensor_parallel}",
            "check CUDA_VISIBLE_DEVICES and the instance type",
        )
    driver = gpus[0]
    major = version_of(cuda)[0] if cuda else min(MIN_DRIVER)
    need = MIN_DRIVER.get(major, MIN_DRIVER[max(MIN_DRIVER)])
    if version_of(driver) < need:
        want = ".".join(map(str, need))
        raise PhaseError(
            f"NVIDIA driver {driver} is too old for CUDA {cuda or major}",
            f"install driver {want} or newer, or a torch build for an older CUDA",
        )


def check_runtime(deployment: Deployment, packages: list[str] | None = None) -> None:
    """torch of a tested version, built for the device. Raises PhaseError.

    `packages`: the folders in which an interpreter finds packages (its sys.path); None = this one's.
    """
    path = sys.path if packages is None else packages
    torch = next(iter(metadata.distributions(name="torch", path=path)), None)
    if torch is None:
        raise PhaseError("torch is not installed", f"run: {INSTALL}")
    version = torch.version
    if not TORCH_FROM <= version_of(version) < TORCH_BELOW:
        valid = f">={'.'.join(map(str, TORCH_FROM))},<{'.'.join(map(str, TORCH_BELOW))}"
        raise PhaseError(f"torch {version} is not supported", f"run: pip install 'torch{valid}'")
    if deployment.engine.device == "cuda" and cuda_build(path) is None:
        raise PhaseError(
            f"torch {version} is a CPU build, the device is cuda",
            "install the default (CUDA) build of torch from the package index, without +cpu",
        )


def cuda_build(packages: list[str] | None = None) -> str | None:
    """The CUDA version that the installed torch is built for, read from torch/version.py without importing
    it."""
    spec = PathFinder.find_spec("torch", sys.path if packages is None else packages)
    if spec is None or spec.origin is None:
        return None
    for line in Path(spec.origin).with_name("version.py").read_text().splitlines():
        if match := re.match(r"cuda\b[^=]*=\s*(.+)", line):
            value = ast.literal_eval(match.group(1))
            return None if value is None else str(value)
    return None


def version_of(text: str) -> tuple[int, int]:
    """Major and minor; (0, 0) for what is no version."""
    numbers = re.findall(r"\d+", text)[:2]
    return (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else (0, 0)


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free
