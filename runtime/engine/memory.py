"""How large the KV pool may be: measured after the model is loaded, not assumed."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

import torch

GIB = 2**30
CPU_SHARE = 0.25  # of the memory that is free after load
CPU_LIMIT = 4 * GIB
HOST_MARGIN = GIB // 4  # left free for the server and the step's activations


class OutOfMemoryError(ValueError):
    """The KV pool that was asked for does not fit; the text names the numbers."""


@dataclass(frozen=True, slots=True)
class PoolSize:
    """`blocks` KV blocks; `measured` says in words what the number comes from."""

    blocks: int
    measured: str


def cpu_pool(kv_bytes: int | None, bytes_per_block: int, useful_blocks: int) -> PoolSize:
    """The pool in host memory: `kv_bytes` if given, else a quarter of what is free now, at most 4 GiB.

    Never more than `useful_blocks`, which is what all requests together can use.
    """
    free = available_host_bytes()
    wanted = min(CPU_LIMIT, int(free * CPU_SHARE)) if kv_bytes is None else kv_bytes
    blocks = min(wanted // bytes_per_block, useful_blocks)
    if blocks * bytes_per_block > free - HOST_MARGIN:
        raise OutOfMemoryError(
            f"a KV pool of {wanted / GIB:.2f} GiB does not fit in the {free / GIB:.2f} GiB of memory that is free"
        )
    return PoolSize(blocks, f"{free / GIB:.2f} GiB of host memory free after load")


def gpu_pool(utilization: float, bytes_per_block: int, useful_blocks: int) -> PoolSize:
    """The pool on a GPU: utilization · total − what is in use after load and a rehearsed step of full size.

    Torch's allocator keeps the rehearsal's peak reserved, so what is in use includes it.
    """
    free, total = torch.cuda.mem_get_info()
    used = total - free
    budget = int(total * utilization) - used
    measured = f"{used / GIB:.2f} of {total / GIB:.2f} GiB in use after load and a full step"
    if budget < 2 * bytes_per_block:
        raise OutOfMemoryError(f"{measured}: at gpu_memory_utilization {utilization} nothing is left for the KV cache")
    return PoolSize(min(budget // bytes_per_block, useful_blocks), measured)


def used_bytes(device: torch.device) -> int:
    """What this process holds on `device` now: allocated GPU memory, or resident host memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return resident_pages * os.sysconf("SC_PAGE_SIZE")


def return_freed() -> None:
    """Gives the pages that loading has freed back to the system, where the allocator can (glibc's malloc_trim(3))."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def available_host_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """MemAvailable of /proc/meminfo, in bytes."""
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OutOfMemoryError(f"{meminfo} does not say MemAvailable")
