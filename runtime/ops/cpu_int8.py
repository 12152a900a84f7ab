"""Linear layers in int8 on a CPU: our kernels, or without a compiler torch's own product of int8 matrices."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from runtime.ops.int8 import linear as plain_linear
from runtime.ops.int8 import quantize
from runtime.ops.ops import Linear

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


def pack_plain(weight: Tensor, bias: Tensor | None) -> Linear:
    """A linear layer in int8 by `runtime.ops.int8`, from its weight [out, in] in float32."""
    held = quantize(weight)
    return lambda x: plain_linear(x, held, bias)


class Int8Kernels:
    """Linear layers of cpu_int8.cpp."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._packed_bytes = library.dc_int8_packed_bytes
        self._packed_bytes.argtypes, self._packed_bytes.restype = [_SIZE, _SIZE], _SIZE
        self._padded_outputs = library.dc_int8_padded_outputs
        self._padded_outputs.argtypes, self._padded_outputs.restype = [_SIZE], _SIZE
        self._pack = library.dc_int8_pack
        self._pack.argtypes, self._pack.restype = [*[_POINTER] * 3, *[_SIZE] * 2], None
        self._linear = library.dc_int8_linear
        self._linear.argtypes, self._linear.restype = [*[_POINTER] * 6, *[_SIZE] * 3], None

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """A linear layer in int8 from its weight [out, in] in float32."""
        out_size, in_size = weight.shape
        held = quantize(weight)
        packed = torch.empty(self._packed_bytes(out_size, in_size), dtype=torch.int8)
        outputs = self._padded_outputs(out_size)
        sums = torch.empty(outputs, dtype=torch.int32)
        self._pack(held.data.contiguous().data_ptr(), packed.data_ptr(), sums.data_ptr(), out_size, in_size)
        scale, start = _padded(held.scale, outputs), None if bias is None else _padded(bias, outputs)

        def linear(x: Tensor) -> Tensor:
            x = x.contiguous()
            out = x.new_empty(x.shape[0], out_size)
            self._linear(
                x.data_ptr(), packed.data_ptr(), scale.data_ptr(), sums.data_ptr(),
                None if start is None else start.data_ptr(), out.data_ptr(), x.shape[0], out_size, in_size,
            )  # fmt: skip
            return out

        return linear


def _padded(values: Tensor, size: int) -> Tensor:
    """[size], with zeros behind."""
    out = torch.zeros(size)
    out[: len(values)] = values
    return out
