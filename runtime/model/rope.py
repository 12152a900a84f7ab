"""Rotary position embeddings: the table of cos and sin that `ops.rope_write` reads. D is the head size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from runtime.model_spec import ModelSpec, RopeScaling


def inverse_frequencies(spec: ModelSpec) -> tuple[Tensor, float]:
    """Rotary frequencies [D/2] in float32 and the factor on cos and sin.

    Formulas: RoFormer (arXiv 2104.09864); Llama 3.1's piecewise scaling as in Meta's reference code; YaRN
    (arXiv 2309.00071, §3.2 to 3.4).
    """
    dim = spec.head_dim
    exponent = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    freq = 1.0 / (spec.rope_theta**exponent)
    scaling = spec.rope_scaling
    if scaling is None:
        return freq, 1.0
    if scaling.kind == "linear":
        return freq / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3_frequencies(freq, scaling), 1.0
    factor = scaling.attention_factor
    return _yarn_frequencies(freq, scaling, spec), (0.1 * math.log(scaling.factor) + 1.0 if factor is None else factor)


def _llama3_frequencies(freq: Tensor, scaling: RopeScaling) -> Tensor:
    """Long wavelengths are divided by the factor, short ones kept, those between interpolated."""
    wavelength = 2 * math.pi / freq
    low = scaling.original_max_position / scaling.low_freq_factor
    high = scaling.original_max_position / scaling.high_freq_factor
    share = (scaling.original_max_position / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    between = (1 - share) * freq / scaling.factor + share * freq
    return torch.where(wavelength > low, freq / scaling.factor, torch.where(wavelength < high, freq, between))


def _yarn_frequencies(freq: Tensor, scaling: RopeScaling, spec: ModelSpec) -> Tensor:
    """A ramp over dimensions between interpolated (slow) and unchanged (fast) frequencies."""
    dim = spec.head_dim

    def dimension_of(rotations: float) -> float:
        length = scaling.original_max_position / (rotations * 2 * math.pi)
        return dim * math.log(length) / (2 * math.log(spec.rope_theta))

    low = max(math.floor(dimension_of(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension_of(scaling.beta_slow)), dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    interpolated = ramp.clamp(0, 1)
    return freq / scaling.factor * interpolated + freq * (1 - interpolated)


def rope_table(spec: ModelSpec, length: int) -> Tensor:
    """cos | sin of every position, [length, D] float32."""
    freq, factor = inverse_frequencies(spec)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * freq[None, :]
    return torch.cat((angles.cos() * factor, angles.sin() * factor), dim=-1)
