"""Matrices of a checkpoint, several in one, as they are stored: in 16 or 32 bits, or in fp8 with their scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.model.checkpoint import Checkpoint, CheckpointError, Columns, Part, Rows
from runtime.ops import fp8
from runtime.ops.fp8 import BLOCK, Fp8Weight, Weight

BLOCK_SCALE = ".weight_scale_inv"  # [⌈rows / 128⌉, ⌈columns / 128⌉]
TENSOR_SCALE = ".weight_scale"  # one number
# For activations, per tensor. Not used: ours are scaled per token, as they come, which is never coarser.
INPUT_SCALE = ".input_scale"


@dataclass(frozen=True, slots=True)
class Piece:
    """The matrix `name`.weight of the checkpoint, of `shape`, and the part of it that is read."""

    name: str
    shape: tuple[int, int]
    part: Part

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the part."""
        rows, columns = self.shape
        return (len(self.part.span), columns) if isinstance(self.part, Rows) else (rows, len(self.part.span))


@dataclass(frozen=True, slots=True)
class Matrices:
    """Reads matrices onto `device`, one piece at a time: in `dtype` and `hold`'s form of it, or in fp8 if stored so.

    CheckpointError when pieces of one matrix are stored in different ways, or do not meet at whole fp8 blocks.
    """

    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype
    hold: Callable[[Tensor], Weight]

    def read(self, pieces: list[Piece]) -> Weight:
        """One matrix [N, K]: the pieces below one another."""
        return self.stack([pieces])[0]

    def stack(self, matrices: list[list[Piece]]) -> Weight:
        """Matrices of one shape, as [len(matrices), N, K]."""
        if self.checkpoint.is_fp8(matrices[0][0].name + ".weight"):
            return self._quantized(matrices)
        return self.hold(self._data(matrices, self.dtype))

    def leave(self, name: str) -> None:
        """The matrix is another rank's to read."""
        self.checkpoint.leave(name + ".weight")
        for suffix in (BLOCK_SCALE, TENSOR_SCALE, INPUT_SCALE):
            if name + suffix in self.checkpoint:
                self.checkpoint.leave(name + suffix)

    def _data(self, matrices: list[list[Piece]], dtype: torch.dtype) -> Tensor:
        rows, columns = sum(piece.size[0] for piece in matrices[0]), matrices[0][0].size[1]
        out = torch.empty(len(matrices), rows, columns, device=self.device, dtype=dtype)
        for index, pieces in enumerate(matrices):
            start = 0
            for piece in pieces:
                stop = start + piece.size[0]
                out[index, start:stop] = self.checkpoint.take(f"{piece.name}.weight", piece.shape, dtype, piece.part)
                start = stop
        return out

    def _quantized(self, matrices: list[list[Piece]]) -> Fp8Weight:
        data = self._data(matrices, fp8.DTYPE)
        for name in (piece.name + INPUT_SCALE for pieces in matrices for piece in pieces):
            if name in self.checkpoint:
                self.checkpoint.leave(name)
        in_blocks = matrices[0][0].name + BLOCK_SCALE in self.checkpoint
        read = self._block_scale if in_blocks else self._row_scale
        scale = torch.stack([torch.cat([read(piece) for piece in pieces]) for pieces in matrices]).to(self.device)
        if in_blocks and any(piece.size[0] % BLOCK for pieces in matrices for piece in pieces[:-1]):
            names = ", ".join(f"{piece.name} ({piece.size[0]})" for piece in matrices[0])
            raise CheckpointError(f"rows of {names} make one matrix, and are not whole fp8 blocks of {BLOCK}")
        return Fp8Weight(data, scale, (BLOCK, BLOCK) if in_blocks else (1, data.shape[2]))

    def _block_scale(self, piece: Piece) -> Tensor:
        rows, columns = piece.shape
        whole = columns if isinstance(piece.part, Columns) else rows
        span = piece.part.span
        if span.start % BLOCK or (span.stop % BLOCK and span.stop != whole):
            raise CheckpointError(f"{piece.name}: {span.start} to {span.stop} are not whole fp8 blocks of {BLOCK}")
        part = type(piece.part)(range(span.start // BLOCK, -(-span.stop // BLOCK)))
        shape = (-(-rows // BLOCK), -(-columns // BLOCK))
        return self.checkpoint.take(piece.name + BLOCK_SCALE, shape, torch.float32, part)

    def _row_scale(self, piece: Piece) -> Tensor:
        """The tensor's one scale, for each row."""
        return torch.full((piece.size[0], 1), self.checkpoint.take_number(piece.name + TENSOR_SCALE))
