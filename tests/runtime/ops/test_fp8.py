"""Weights in fp8 stand for exactly data · scale, and quantizing loses no more than three bits of mantissa must."""

from __future__ import annotations

import pytest
import torch

from runtime.ops import fp8
from runtime.ops.fp8 import Fp8Weight
from runtime.ops.ops import REFERENCE


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("block", [(128, 128), (1, 200)])
def test_each_weight_is_its_byte_times_the_scale_of_its_block(block: tuple[int, int]) -> None:
    rows, columns = 300, 200
    data = torch.randn(rows, columns).to(fp8.DTYPE)
    scale = torch.rand(-(-rows // block[0]), -(-columns // block[1])) + 0.5
    found = Fp8Weight(data, scale, block).dense(torch.float32)
    numbers = data.float()
    for n, k in [(0, 0), (127, 127), (128, 127), (127, 128), (299, 199), (256, 130)]:
        assert found[n, k] == numbers[n, k] * scale[n // block[0], k // block[1]]


def test_the_reference_layer_is_the_dense_one() -> None:
    weight = fp8.quantize(torch.randn(130, 200))
    x, bias = torch.randn(3, 200), torch.randn(130)
    expected = torch.nn.functional.linear(x, weight.dense(torch.float32), bias)
    assert torch.equal(REFERENCE.pack_linear(weight, bias)(x), expected)


@pytest.mark.parametrize("shape", [(256, 128), (130, 200), (3, 130, 200)])
def test_quantized_weights_are_off_by_at_most_a_sixteenth_or_the_smallest_step(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    found = fp8.quantize(weight)
    error = (found.dense(torch.float32) - weight).abs()
    step = found.scale.amax() * 2**-9  # half of it is the error near zero
    assert bool((error <= weight.abs() / 16 + step / 2).all())
    assert found.data.float().abs().max() == fp8.LARGEST


def test_a_matrix_of_zeros_stays_zero() -> None:
    assert torch.equal(fp8.quantize(torch.zeros(130, 5)).dense(torch.float32), torch.zeros(130, 5))


def test_one_of_a_stack_is_that_matrix_alone() -> None:
    weight = torch.randn(3, 130, 200)
    one, alone = fp8.quantize(weight)[1], fp8.quantize(weight[1])
    assert torch.equal(one.dense(torch.float32), alone.dense(torch.float32))


def test_a_tokens_numbers_do_not_depend_on_the_others() -> None:
    x = torch.randn(5, 200)
    data, scale = fp8.quantize_rows(x)
    alone, its_scale = fp8.quantize_rows(x[2:3])
    assert torch.equal(data[2:3].float(), alone.float())
    assert torch.equal(scale[2:3], its_scale)
    assert scale.shape == (5, 2)
    error = (Fp8Weight(data, scale, (1, 128)).dense(torch.float32) - x).abs()
    assert bool((error <= x.abs() / 16 + scale.amax() * 2**-10).all())
