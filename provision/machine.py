"""What this machine has: RAM, CPUs, GPUs, disk. The one module of the plan that looks at the world."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from runtime.sizing import MIB, Gpu, Machine

_QUERY = ("--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits")
_BF16_FLAGS = ("amx_bf16", "avx512_bf16")
_MEMINFO = Path("/proc/meminfo")
_CPUINFO = Path("/proc/cpuinfo")
_CGROUP = Path("/sys/fs/cgroup")


def detect_local(folder: Path | None = None) -> Machine:
    """This machine. Free disk is that of `folder` (default: the home), or of its nearest existing parent.

    A container's memory limit counts where it is below the machine's RAM. GPUs of one kind count; of a mixed
    set the first kind does.
    """
    total, free = parse_meminfo(_MEMINFO.read_text())
    limit = _container_limit()
    if limit is not None and limit[0] < total:
        total, free = limit[0], min(free, limit[1])
    gpus, cpuinfo = _gpus(), _CPUINFO.read_text()
    return Machine(
        name="this machine",
        ram_bytes=total,
        free_ram_bytes=free,
        cpus=len(os.sched_getaffinity(0)),
        gpu=gpus[0] if gpus else None,
        gpu_count=gpus.count(gpus[0]) if gpus else 0,
        cpu_has_bf16=has_bf16(cpuinfo),
        cpu_has_int8=has_int8(cpuinfo),
        free_disk_bytes=shutil.disk_usage(_existing(folder or Path.home())).free,
    )


def parse_meminfo(text: str) -> tuple[int, int]:
    """(total, available) in bytes from the text of /proc/meminfo."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name in ("MemTotal", "MemAvailable"):
            found[name] = int(rest.split()[0]) * 1024
    return found["MemTotal"], found["MemAvailable"]


def has_bf16(cpuinfo: str) -> bool:
    """True when the text of /proc/cpuinfo names bfloat16 units."""
    return not _cpu_flags(cpuinfo).isdisjoint((*_BF16_FLAGS, "bf16"))


def has_int8(cpuinfo: str) -> bool:
    """True when the text of /proc/cpuinfo names the vector units that our int8 kernels are written for."""
    return "avx2" in _cpu_flags(cpuinfo)


def _cpu_flags(cpuinfo: str) -> frozenset[str]:
    for line in cpuinfo.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split())
    return frozenset()


def parse_gpus(csv: str) -> list[Gpu]:
    """GPUs from nvidia-smi's csv of name, memory in MiB, compute capability; lines that do not parse are
    left out."""
    found = []
    for line in csv.splitlines():
        parts = [part.strip() for part in line.split(",")]
        try:
            name, memory, capability = parts
            major, minor = capability.split(".")
            found.append(Gpu(name.removeprefix("NVIDIA "), int(memory) * MIB, (int(major), int(minor))))
        except ValueError:
            continue
    return found


def _gpus() -> list[Gpu]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_gpus(done.stdout) if done.returncode == 0 else []


def _container_limit() -> tuple[int, int] | None:
    """(limit, left) of the control group in bytes, or None without a limit."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else (int(limit), max(0, int(limit) - used))


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
