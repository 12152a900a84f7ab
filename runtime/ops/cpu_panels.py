"""Linear layers on a CPU whose weights lie in panels of 16 outputs (cpu_panels.h): in bfloat16, and in int8."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from runtime.ops import int8
from runtime.ops.ops import Linear


class Panels:
    """The layers of cpu_bf16.cpp and cpu_int8.cpp. Their activations and results are in float32."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def pack_bf16(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """A linear layer with weights [out, in] in bfloat16."""
        out_size, in_size = weight.shape
        packed = torch.empty(self._library.dc_bf16_packed_bytes(out_size, in_size), dtype=torch.uint8)
        self._library.dc_bf16_pack(weight.contiguous().data_ptr(), packed.data_ptr(), out_size, in_size)
        start = None if bias is None else self._padded(bias)

        def linear(x: Tensor) -> Tensor:
            x = x.contiguous()
            out = x.new_empty(x.shape[0], out_size)
            self._library.dc_bf16_linear(
                x.data_ptr(), packed.data_ptr(), None if start is None else start.data_ptr(), out.data_ptr(),
                x.shape[0], out_size, in_size,
            )  # fmt: skip
            return out

        return linear

    def pack_int8(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """A linear layer in int8 from its weights [out, in] in float32 (runtime.ops.int8)."""
        out_size, in_size = weight.shape
        held = int8.quantize(weight)
        packed = torch.empty(self._library.dc_int8_packed_bytes(out_size, in_size), dtype=torch.int8)
        scale, start = self._padded(held.scale), None if bias is None else self._padded(bias)
        sums = torch.empty(len(scale), dtype=torch.int32)
        self._library.dc_int8_pack(
            held.data.contiguous().data_ptr(), packed.data_ptr(), sums.data_ptr(), out_size, in_size
        )

        def linear(x: Tensor) -> Tensor:
            x = x.contiguous()
            out = x.new_empty(x.shape[0], out_size)
            self._library.dc_int8_linear(
                x.data_ptr(), packed.data_ptr(), scale.data_ptr(), sums.data_ptr(),
                None if start is None else start.data_ptr(), out.data_ptr(), x.shape[0], out_size, in_size,
            )  # fmt: skip
            return out

        return linear

    def _padded(self, values: Tensor) -> Tensor:
        """`values` [out] with zeros for the outputs that only fill a panel."""
        out = torch.zeros(self._library.dc_panel_outputs(len(values)))
        out[: len(values)] = values
        return out
