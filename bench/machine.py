"""The machine that a result belongs to: processor, memory, versions, load, and a process tree's time."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from provision.process import children

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Machine:
    """What a reader needs to judge a number. `load_before` is the load average of the last minute."""

    cpu: str
    cores: int
    memory_gib: float
    system: str
    load_before: float
    commit: str


def describe_machine(root: Path) -> Machine:
    return Machine(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        load_before=round(os.getloadavg()[0], 2),
        commit=_commit(root),
    )


def our_versions() -> dict[str, str]:
    """Of what decides our speed; the project's own is the commit."""
    return installed_versions("torch", "uvicorn", "tokenizers")


def installed_versions(*names: str) -> dict[str, str]:
    """By distribution name; one that is not installed is left out."""
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def peak_bytes(pid: int) -> int:
    """The largest resident memory that any one of `pid` and its living descendants ever had (proc(5), VmHWM)."""
    return max(_high_water(member) for member in (pid, *children(pid)))


def available_bytes() -> int:
    """Memory that new processes can have (proc(5), MemAvailable)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _high_water(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def own_cpu_seconds(pid: int) -> float:
    """User + system time of `pid` alone, all its threads; 0 when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _cpu_name() -> str:
    """The model name with what decides fp32 speed, because a virtual machine often hides the exact model."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = facts.get("flags", "").split()
    widest = next((flag for flag in ("avx512f", "avx2") if flag in flags), "no avx2")
    family = f"family {facts.get('cpu family', '?')} model {facts.get('model', '?')}"
    return f"{facts.get('model name', platform.machine())} ({family}, {widest})"


def _commit(root: Path) -> str:
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
