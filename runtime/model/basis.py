"""The basis of the residual stream: as the model was trained, or turned so that int8 loses less.

A few channels of the residual stream are many times larger than the others; a token's one scale in int8 is then
theirs, and the others lose their bits. An orthogonal matrix Q spreads them over all channels and leaves the model what
it is, because RMSNorm without its weights commutes with it (QuaRot, arXiv 2404.00456, without what turns at run time):

    x' = x Q      norm(x') = norm(x) Q      W reads norm(x)·g: W' = W diag(g) Q      W writes to x: W' = Qᵀ W
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from runtime.ops.fp8 import Weight, dense

MAX_HADAMARD = 64  # near the square root of hidden sizes, where the two products together cost least


class Basis(Protocol):
    """Turns what is loaded; H is the hidden size. Weights are [out, in], as in the checkpoint."""

    def gain(self, norm: Tensor) -> Tensor:
        """The weights [H] that are left to an RMSNorm of the stream."""

    def reader(self, weight: Weight, norm: Tensor) -> Weight:
        """A matrix [N, H] that is applied to the stream after the RMSNorm with weights `norm` [H]; or a stack."""

    def writer(self, weight: Weight) -> Weight:
        """A matrix [H, N] whose product is added to the stream; or a stack."""

    def rows(self, vectors: Tensor) -> Tensor:
        """Vectors [.., H] of the stream: embeddings, and biases that are added to it."""


class AsTrained:
    """Everything as it is."""

    def gain(self, norm: Tensor) -> Tensor:
        return norm

    def reader(self, weight: Weight, norm: Tensor) -> Weight:
        return weight

    def writer(self, weight: Weight) -> Weight:
        return weight

    def rows(self, vectors: Tensor) -> Tensor:
        return vectors


AS_TRAINED = AsTrained()


@dataclass(frozen=True, slots=True)
class Turned:
    """Q = Hadamard ⊗ cosine, both orthonormal and small: of a power of two, and of the factor that is left of H."""

    hadamard: Tensor  # [P, P]
    cosine: Tensor  # [M, M], P · M = H

    @classmethod
    def of(cls, hidden_size: int) -> Turned:
        power = min(hidden_size & -hidden_size, MAX_HADAMARD)
        return cls(_hadamard(power), _cosine(hidden_size // power))

    def gain(self, norm: Tensor) -> Tensor:
        return torch.ones_like(norm)

    def reader(self, weight: Weight, norm: Tensor) -> Weight:
        return self.rows(dense(weight, norm.dtype) * norm)

    def writer(self, weight: Weight) -> Weight:
        return self.rows(dense(weight, self.cosine.dtype).mT.contiguous()).mT.contiguous()

    def rows(self, vectors: Tensor) -> Tensor:
        """`vectors` times Q: two small products in place of one with a matrix [H, H]."""
        split = vectors.view(*vectors.shape[:-1], len(self.hadamard), len(self.cosine))
        return (self.hadamard.T @ (split @ self.cosine)).view(vectors.shape)


def _hadamard(size: int) -> Tensor:
    """Sylvester's matrix [size, size] of ±1/√size; `size` is a power of two."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return (matrix / math.sqrt(size)).float()


def _cosine(size: int) -> Tensor:
    """The orthonormal DCT-II [size, size]."""
    number = torch.arange(size, dtype=torch.float64)
    angle = (number[None] + 0.5) * number[:, None] * math.pi / size
    matrix = angle.cos() * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.float()
