"""Ops on an NVIDIA GPU: Triton kernels where Triton is installed, which torch's CUDA builds bring; else torch's own.

Unquantized linear layers stay torch's: cuBLAS knows the shapes and cards.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from importlib.util import find_spec

import torch

from runtime.ops.fp8 import Fp8Math, Weight, dense
from runtime.ops.ops import Experts, Ops

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

log = logging.getLogger("engine")


def gpu_ops(plain: Ops, dtype: torch.dtype, fp8: Fp8Math | None = None) -> Ops:
    """`plain` with every op that has a kernel for `dtype` replaced by it; with `fp8`, weights in fp8 stay so."""
    if dtype not in DTYPES or find_spec("triton") is None:
        log.warning("GPU kernels: Triton has none for %s here, using torch (slower)", dtype)
        return plain
    from runtime.ops import triton_attention, triton_elementwise, triton_matmul, triton_routing

    def pack_unpacked(gate_up: Weight, down: Weight, first: int) -> Experts:
        return triton_matmul.experts("dense")(dense(gate_up, dtype), dense(down, dtype), first)

    return replace(
        plain,
        name="gpu",
        pack_linear=triton_matmul.linears(plain.pack_linear, fp8) if fp8 else plain.pack_linear,
        pack_experts=triton_matmul.experts(fp8) if fp8 else pack_unpacked,
        rms_norm=triton_elementwise.rms_norm,
        add_rms_norm=triton_elementwise.add_rms_norm,
        silu_mul=triton_elementwise.silu_mul,
        rope_write=triton_elementwise.rope_write,
        attention=triton_attention.attention,
        route=triton_routing.route,
        recordable=True,
    )
