"""Builds the C++ kernels once into a content-hashed cache, and calls those in float32.

Strictly optional: no compiler, no kernels.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import torch
from torch import Tensor

from runtime.ops.batch import Batch
from runtime.ops.ops import Linear

_FOLDER = Path(__file__).parent
SOURCES = [_FOLDER / name for name in ("cpu_kernels.cpp", "cpu_bf16.cpp", "cpu_int8.cpp", "cpu_layer.cpp")]
HEADERS = [_FOLDER / name for name in ("cpu_kernels.h", "cpu_panels.h")]
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-fopenmp", "-fPIC")
BUILD_TIMEOUT_S = 120

log = logging.getLogger("engine")

# Arguments (p: pointer, n: size, f: float), and n before the colon where a size is returned.
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "f": ctypes.c_float}
_SIGNATURES = {
    "dc_rms_norm": ":ppfpnn",
    "dc_add_rms_norm": ":pppfppnn",
    "dc_silu_mul": ":ppnn",
    "dc_rope_write": ":pppfppppppnnnnnn",
    "dc_attention": ":pppppppnnnnnnnf",
    "dc_packed_floats": "n:nn",
    "dc_pack": ":ppnn",
    "dc_linear": ":ppppnnn",
    "dc_panel_outputs": "n:n",
    "dc_bf16_packed_bytes": "n:nn",
    "dc_bf16_pack": ":ppnn",
    "dc_int8_packed_bytes": "n:nn",
    "dc_int8_pack": ":ppppnn",
    "dc_panel_linear": ":pppn",
    "dc_layer": ":pppppp",
}


def load_library(arch: str = "native") -> ctypes.CDLL | None:
    """The kernels, built for `arch` (GCC's -march); None, with one line in the log that says why, where they cannot be
    built or loaded."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        log.info("CPU kernels: no C++ compiler on PATH, using torch (faster with: apt-get install g++)")
        return None
    try:
        library = ctypes.CDLL(str(_build(compiler, arch)))
    except (OSError, subprocess.SubprocessError) as error:
        detail = error.stderr[-500:] if isinstance(error, subprocess.CalledProcessError) else error
        log.warning("CPU kernels: not built, using torch: %s", detail)
        return None
    for name, signature in _SIGNATURES.items():
        returned, _, arguments = signature.partition(":")
        function = getattr(library, name)
        function.argtypes, function.restype = [_TYPES[letter] for letter in arguments], _TYPES.get(returned)
    return library


def cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "deployctl" / "kernels"


def _build(compiler: str, arch: str) -> Path:
    """The shared library for these sources, this compiler and this CPU."""
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in (*HEADERS, *SOURCES)))
    flags = (*FLAGS, f"-march={arch}")
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=BUILD_TIMEOUT_S).stdout
    for part in (" ".join(flags).encode(), version, platform.machine().encode(), _cpu_features()):
        digest.update(part)
    library = cache_dir() / f"cpu-{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder) / library.name

        def run(*words: object) -> None:
            command = [compiler, *flags, *map(str, words)]
            subprocess.run(command, capture_output=True, check=True, text=True, timeout=BUILD_TIMEOUT_S)

        objects = [built.with_name(f"{source.stem}.o") for source in SOURCES]
        with ThreadPoolExecutor() as pool:
            list(pool.map(run, repeat("-c"), SOURCES, repeat("-o"), objects))
        run("-shared", "-o", built, *objects)
        os.replace(built, library)  # two engines that build at once both end with a whole file
    return library


def _cpu_features() -> bytes:
    """What -march=native depends on."""
    for line in Path("/proc/cpuinfo").read_bytes().splitlines():
        if line.startswith((b"flags", b"Features")):
            return line
    return b""


class CpuKernels:
    """The ops of `runtime.ops.reference` over contiguous float32 tensors.

    `rope_write` and `attention` belong together: inside a cache block they keep keys as [K, D, block_size] and values
    as [K, block_size, D].
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """A linear layer whose weight [out, in] is stored in panels."""
        out_size, in_size = weight.shape
        weight = weight.contiguous()
        packed = torch.empty(self._library.dc_packed_floats(out_size, in_size))
        self._library.dc_pack(weight.data_ptr(), packed.data_ptr(), out_size, in_size)

        def linear(x: Tensor) -> Tensor:
            x = x.contiguous()
            out = x.new_empty(x.shape[0], out_size)
            start = bias.data_ptr() if bias is not None else None
            self._library.dc_linear(
                x.data_ptr(), packed.data_ptr(), start, out.data_ptr(), x.shape[0], out_size, in_size
            )
            return out

        return linear

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        self._library.dc_rms_norm(
            x.data_ptr(), weight.data_ptr(), eps, out.data_ptr(), x.numel() // x.shape[-1], x.shape[-1]
        )
        return out

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x, residual = x.contiguous(), residual.contiguous()
        out, total = torch.empty_like(x), torch.empty_like(x)
        self._library.dc_add_rms_norm(
            x.data_ptr(), residual.data_ptr(), weight.data_ptr(), eps, out.data_ptr(), total.data_ptr(),
            x.shape[0], x.shape[1],
        )  # fmt: skip
        return out, total

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        tokens, inner = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(tokens, inner)
        self._library.dc_silu_mul(gate_up.data_ptr(), out.data_ptr(), tokens, inner)
        return out

    def rope_write(
        self,
        qkv: Tensor,
        norms: tuple[Tensor, Tensor] | None,
        eps: float,
        table: Tensor,
        cache: Tensor,
        batch: Batch,
    ) -> Tensor:
        qkv = qkv.contiguous()
        tokens = qkv.shape[0]
        block_size, kv_heads, dim = cache.shape[2:]
        heads = qkv.shape[1] // dim - 2 * kv_heads
        query = qkv.new_empty(tokens, heads, dim)
        q_norm, k_norm = (norms[0].data_ptr(), norms[1].data_ptr()) if norms else (None, None)
        keys, values = cache_pointers(cache)
        self._library.dc_rope_write(
            qkv.data_ptr(), q_norm, k_norm, eps, table.data_ptr(), batch.positions.data_ptr(),
            batch.slots.data_ptr(), keys, values, query.data_ptr(), cache.itemsize, tokens, heads, kv_heads, dim,
            block_size,
        )  # fmt: skip
        return query

    def attention(self, query: Tensor, cache: Tensor, batch: Batch, scale: float) -> Tensor:
        query = query.contiguous()
        block_size, kv_heads, dim = cache.shape[2:]
        out = torch.empty_like(query)
        keys, values = cache_pointers(cache)
        self._library.dc_attention(
            query.data_ptr(), keys, values, batch.starts.data_ptr(), batch.contexts.data_ptr(),
            batch.tables.data_ptr(), out.data_ptr(), cache.itemsize, len(batch.rows), batch.tables.shape[1],
            block_size, query.shape[1], kv_heads, dim, scale,
        )  # fmt: skip
        return out


def cache_pointers(cache: Tensor) -> tuple[int, int]:
    """Addresses of the keys and of the values in a cache [2, blocks, block_size, K, D]."""
    start = cache.data_ptr()
    return start, start + cache.stride(0) * cache.element_size()
