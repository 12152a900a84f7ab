"""Linear layers on a CPU whose weights lie in panels of 16 outputs (cpu_panels.h), in bfloat16 and in int8, and whole
layers of a decoder made of them (cpu_layer.cpp)."""

from __future__ import annotations

import ctypes
from functools import partial

import torch
from torch import Tensor

from runtime.ops.batch import Batch
from runtime.ops.cpu_kernels import cache_pointers
from runtime.ops.ops import Block, DenseMlp, Layer

SIZE, POINTER = ctypes.c_int64, ctypes.c_void_p


class _Linear(ctypes.Structure):
    """PanelLinear of cpu_kernels.h."""

    _fields_ = (
        ("is_int8", SIZE), ("packed", POINTER), ("scale", POINTER), ("sums", POINTER), ("bias", POINTER),
        ("out", SIZE), ("inputs", SIZE),
    )  # fmt: skip


class _Layer(ctypes.Structure):
    """DenseLayer of cpu_layer.cpp."""

    _fields_ = (
        *((name, _Linear) for name in ("qkv", "o", "gate_up", "down")),
        *((name, POINTER) for name in ("q_norm", "k_norm", "mlp_norm", "next_norm", "rope_table")),
        ("heads", SIZE), ("kv_heads", SIZE), ("dim", SIZE), ("eps", ctypes.c_float), ("scale", ctypes.c_float),
    )  # fmt: skip


class _Step(ctypes.Structure):
    """Step of cpu_layer.cpp."""

    _fields_ = (
        *((name, POINTER) for name in ("positions", "slots", "starts", "contexts", "tables")),
        *((name, SIZE) for name in ("tokens", "requests", "max_blocks", "block_size", "kv_bytes")),
    )


class PanelLinear:
    """One layer: x [T, in] to [T, out] in float32. `held`: packed weights; scales and sums, in int8; a bias or None."""

    def __init__(self, library: ctypes.CDLL, shape: torch.Size, *held: Tensor | None) -> None:
        self._library = library
        self._held = held  # what `native` points to
        self.native = _Linear(held[1] is not None, *map(_address, held), *shape)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = x.new_empty(x.shape[0], self.native.out)
        self._library.dc_panel_linear(ctypes.byref(self.native), x.data_ptr(), out.data_ptr(), x.shape[0])
        return out


class Panels:
    """The layers of cpu_bf16.cpp and cpu_int8.cpp."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._step: tuple[Batch, _Step] | None = None  # the newest

    def pack_bf16(self, weight: Tensor, bias: Tensor | None) -> PanelLinear:
        """A linear layer with weights [out, in] in bfloat16."""
        packed = torch.empty(self._library.dc_bf16_packed_bytes(*weight.shape), dtype=torch.uint8)
        self._library.dc_bf16_pack(weight.contiguous().data_ptr(), packed.data_ptr(), *weight.shape)
        return PanelLinear(self._library, weight.shape, packed, None, None, self._padded(bias))

    def pack_int8(self, weight: Tensor, bias: Tensor | None) -> PanelLinear:
        """A linear layer in int8 (runtime.ops.int8) from its weights [out, in] in float32."""
        packed = torch.empty(self._library.dc_int8_packed_bytes(*weight.shape), dtype=torch.int8)
        outputs, held = self._library.dc_panel_outputs(len(weight)), weight.contiguous()
        scale, sums = torch.empty(outputs), torch.empty(outputs, dtype=torch.int32)
        made = (packed, scale, sums)
        self._library.dc_int8_pack(held.data_ptr(), *(one.data_ptr() for one in made), *weight.shape)
        return PanelLinear(self._library, weight.shape, *made, self._padded(bias))

    def fuse(self, layer: Layer, next_norm: Tensor, rope_table: Tensor, eps: float, scale: float) -> Block | None:
        """The layer in one call; None where it is not dense, or its linear layers are of another kind."""
        mlp = (layer.mlp.gate_up, layer.mlp.down) if isinstance(layer.mlp, DenseMlp) else ()
        linears = [part.native for part in (layer.qkv, layer.o, *mlp) if isinstance(part, PanelLinear)]
        if len(linears) < 4:
            return None
        held = (*(layer.qk_norms or (None, None)), layer.mlp_norm, next_norm, rope_table)
        dim = rope_table.shape[1]
        heads = linears[1].inputs // dim
        kv_heads = (linears[0].out // dim - heads) // 2
        native = _Layer(*linears, *map(_address, held), heads, kv_heads, dim, eps, scale)
        return partial(self._run, (layer, held), native)

    def _run(
        self, _held: object, native: _Layer, x: Tensor, residual: Tensor, cache: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """`_held` is what `native` points into."""
        step = ctypes.byref(self._step_of(batch, cache))
        pointers = (*cache_pointers(cache), x.data_ptr(), residual.data_ptr())
        self._library.dc_layer(ctypes.byref(native), step, *pointers)
        return x, residual

    def _step_of(self, batch: Batch, cache: Tensor) -> _Step:
        """Made once for all layers of a step."""
        if self._step is None or self._step[0] is not batch:
            tensors = (batch.positions, batch.slots, batch.starts, batch.contexts, batch.tables)
            sizes = (len(batch.tokens), len(batch.rows), batch.tables.shape[1], cache.shape[2], cache.itemsize)
            self._step = batch, _Step(*(one.data_ptr() for one in tensors), *sizes)
        return self._step[1]

    def _padded(self, values: Tensor | None) -> Tensor | None:
        """`values` [out] with zeros for the outputs that only fill a panel."""
        if values is None:
            return None
        out = torch.zeros(self._library.dc_panel_outputs(len(values)))
        out[: len(values)] = values
        return out


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
