"""Where Triton kernels are tested: everywhere in Triton's interpreter, with `-m gpu` compiled on the GPU."""

from __future__ import annotations

import os
from typing import NamedTuple

import pytest
import torch


class Place(NamedTuple):
    device: torch.device
    dtype: torch.dtype


# The interpreter rounds bfloat16 towards zero and multiplies no matrices of it: that is left to the GPU.
INTERPRETED = [("cpu", "float32"), ("cpu", "float16")]
COMPILED = [("cuda", "float32"), ("cuda", "float16"), ("cuda", "bfloat16")]


@pytest.fixture(
    params=[*INTERPRETED, *(pytest.param(place, marks=pytest.mark.gpu) for place in COMPILED)], ids="-".join
)
def place(request: pytest.FixtureRequest) -> Place:
    device, dtype = request.param
    refuse_interpreter(device)
    return Place(torch.device(device), getattr(torch, dtype))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    refuse_interpreter(request.param)
    return torch.device(request.param)


def refuse_interpreter(device: str) -> None:
    if device == "cuda" and os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("compiled kernels are tested by: python -m pytest -m gpu")
