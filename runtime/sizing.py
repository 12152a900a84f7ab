"""What a model needs and what a machine gives: pure arithmetic, no torch, no I/O. Sizes in bytes.

Formulas follow the layout that the engine uses (fused weights, paged KV cache) and vLLM's published
procedure for what may be used of a GPU; each docstring names its source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from runtime.model_spec import ModelSpec

GIB = 1024**3
MIB = 1024**2

BYTES_PER_ELEMENT = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
FP8_BLOCK = 128  # weights per side of one scaling block of a block-fp8 checkpoint
FP8_BYTES = 1 + 4 / FP8_BLOCK**2  # one byte and its share of the block's float32 scale
TP_SIZES = (1, 2, 3, 4, 6, 8, 16)
VOCAB_PADDING = 64  # rows; the vocabulary is padded to 64 · tp

# Per GPU. Context and libraries are typical values, to be compared with what the engine measures at start.
CUDA_CONTEXT_BYTES = int(0.55 * GIB)
NCCL_BYTES = int(0.5 * GIB)
GRAPH_BYTES = int(0.35 * GIB)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU. `memory_bytes` is what torch reports as total, below the number on the box;
    `capability` is the CUDA compute capability (8, 9)."""

    kind: str
    memory_bytes: int
    capability: tuple[int, int]

    @property
    def has_bf16(self) -> bool:
        """Ampere (8.0) and later (CUDA programming guide, arithmetic per compute capability)."""
        return self.capability >= (8, 0)

    @property
    def has_fp8(self) -> bool:
        """fp8 tensor cores: Ada (8.9) and later. Older GPUs store fp8 weights and compute in 16 bits."""
        return self.capability >= (8, 9)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a deployment runs on. `free_ram_bytes` is what a new process may take now; on a machine that is
    yet to be bought it is the RAM less the system's share."""

    name: str
    ram_bytes: int
    free_ram_bytes: int
    cpus: int
    gpu: Gpu | None = None
    gpu_count: int = 0
    cpu_has_bf16: bool = False  # AMX or AVX-512 BF16
    free_disk_bytes: int | None = None  # None = chosen at purchase, or unknown
