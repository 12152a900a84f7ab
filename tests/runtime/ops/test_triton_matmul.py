"""The kernel for fp8 weights and experts computes what the plain-torch reference computes.

In float32 to 10⁻⁴ of sums of a few hundred products; in 16 bits to the rounding of what it reads and writes.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.ops import fp8, reference
from runtime.ops.fp8 import Fp8Weight, Weight
from runtime.ops.ops import one_by_one, pack_linear
from runtime.ops.triton_matmul import Matmul, experts, linears, quantize_rows
from runtime.ops.triton_routing import sort_pairs
from tests.runtime.ops.conftest import Place

HIDDEN, INNER, EXPERTS, TOP_K = 144, 80, 4, 2
BLOCK_ROWS = 16  # of gate and up, so that both are whole blocks
slow = pytest.mark.slow


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def weights(*shape: int, block: tuple[int, int] = (128, 128), device: torch.device | None = None) -> Fp8Weight:
    """Random ones; with blocks of one row, a scale per row."""
    rows, columns = shape[-2:]
    scale = torch.rand(*shape[:-2], -(-rows // block[0]), -(-columns // block[1])) * 0.01 + 0.001
    return Fp8Weight((torch.randn(shape) * 50).to(fp8.DTYPE).to(device), scale.to(device), block)


def in_fp8(tokens: int, columns: int) -> Tensor:
    """Activations that fp8 holds exactly, with a scale that is a power of two: quantizing must not change them.

    (The interpreter rounds some other numbers to half of what they are.)
    """
    x = (torch.randn(tokens, columns) * 60).clamp(-440, 440).to(fp8.DTYPE).float()
    x[:, ::128] = fp8.LARGEST
    return x * 2.0 ** torch.randint(-12, -6, (tokens, 1))


def assert_near(got: Tensor, want: Tensor) -> None:
    """Within rounding, measured against the largest number there."""
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[got.dtype]
    assert got.shape == want.shape
    assert (got.float() - want.float()).abs().max() <= tolerance * want.float().abs().max()


@pytest.mark.parametrize(
    ("tokens", "block"),
    [
        (1, (128, 128)),
        pytest.param(3, (1, 200), marks=slow),
        pytest.param(40, (128, 128), marks=slow),
        pytest.param(70, (128, 128), marks=slow),
    ],
)
def test_weights_in_fp8_are_multiplied_as_if_unpacked(place: Place, tokens: int, block: tuple[int, int]) -> None:
    weight = weights(130, 200, block=block, device=place.device)
    x = torch.randn(tokens, 200).to(place.device, place.dtype)
    bias = torch.randn(130).to(place.device, place.dtype)
    want = F.linear(x.float(), weight.dense(torch.float32), bias.float())
    assert_near(Matmul(weight, "w8a16").linear(x, bias), want)


@pytest.mark.parametrize(("tokens", "block"), [(3, (128, 128)), pytest.param(40, (1, 200), marks=slow)])
def test_activations_that_fp8_holds_lose_nothing_in_fp8(
    device: torch.device, tokens: int, block: tuple[int, int]
) -> None:
    weight = weights(130, 200, block=block, device=device)
    x = in_fp8(tokens, 200).to(device)
    want = F.linear(x, weight.dense(torch.float32))
    assert_near(Matmul(weight, "w8a8").linear(x, None), want)


def test_activations_are_quantized_as_the_reference_does(device: torch.device) -> None:
    x = in_fp8(5, 2200).to(device)  # more groups of 128 than one program takes
    data, scale = quantize_rows(x)
    want, want_scale = fp8.quantize_rows(x)
    assert torch.equal(data.float(), want.float())
    assert torch.equal(scale, want_scale)
    assert torch.equal(quantize_rows(torch.zeros_like(x))[0].float(), torch.zeros_like(x))


def test_weights_that_are_not_in_fp8_stay_with_the_plain_layer() -> None:
    weight, x = torch.randn(130, 200), torch.randn(3, 200)
    assert torch.equal(linears(pack_linear, "w8a16")(weight, None)(x), F.linear(x, weight))


def routed(tokens: int, place: Place) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, the weights of their experts, and the experts; nobody chooses expert 2."""
    x = torch.randn(tokens, HIDDEN).to(place.device, place.dtype)
    logits = torch.randn(tokens, EXPERTS)
    logits[:, 2] = -100.0
    factors, chosen = reference.route(logits.to(place.dtype), TOP_K, True)
    return x, factors.to(place.device), chosen.to(place.device)


def one_after_another(gate_up: Weight, down: Weight, first: int, routing: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """By the reference, in float32."""
    x, factors, chosen = routing
    pack = one_by_one(pack_linear, reference.silu_mul)
    return pack(gate_up, down, first)(x.float(), factors.float(), chosen)


@pytest.mark.parametrize("tokens", [3, *(pytest.param(tokens, marks=slow) for tokens in (1, 70))])
def test_experts_are_those_of_the_reference(place: Place, tokens: int) -> None:
    gate_up = (torch.randn(EXPERTS, 2 * INNER, HIDDEN) * 0.1).to(place.device, place.dtype)
    down = (torch.randn(EXPERTS, HIDDEN, INNER) * 0.1).to(place.device, place.dtype)
    routing = routed(tokens, place)
    want = one_after_another(gate_up.float(), down.float(), 0, routing)
    assert_near(experts("w8a16")(gate_up, down, 0)(*routing), want)


@pytest.mark.parametrize("tokens", [1, *(pytest.param(tokens, marks=slow) for tokens in (9, 70))])
def test_experts_in_fp8_are_those_of_the_reference(place: Place, tokens: int) -> None:
    gate_up = weights(EXPERTS, 2 * INNER, HIDDEN, block=(BLOCK_ROWS, 128), device=place.device)
    down = weights(EXPERTS, HIDDEN, INNER, device=place.device)
    routing = routed(tokens, place)
    assert_near(experts("w8a16")(gate_up, down, 0)(*routing), one_after_another(gate_up, down, 0, routing))


def test_experts_lose_nothing_by_activations_that_fp8_holds(device: torch.device) -> None:
    gate_up = weights(EXPERTS, 2 * INNER, HIDDEN, block=(BLOCK_ROWS, 128), device=device)
    _, factors, chosen = routed(3, Place(device, torch.float32))
    x = in_fp8(3, HIDDEN).to(device)
    routing = sort_pairs(factors, chosen, range(EXPERTS))
    inner = Matmul(gate_up, "w8a8").gated(x, routing)
    assert_near(inner, Matmul(gate_up, "w8a16").gated(x, routing))


def test_the_parts_of_ranks_add_up_to_the_whole(device: torch.device) -> None:
    place = Place(device, torch.float32)
    gate_up = torch.randn(EXPERTS, 2 * INNER, HIDDEN, device=device) * 0.1
    down = torch.randn(EXPERTS, HIDDEN, INNER, device=device) * 0.1
    routing = routed(3, place)
    parts = [
        experts("w8a16")(gate_up[own.start : own.stop], down[own.start : own.stop], own.start)(*routing)
        for own in (range(2), range(2, 4))
    ]
    assert_near(parts[0] + parts[1], one_after_another(gate_up, down, 0, routing))


@slow
def test_when_all_choose_the_same_experts_the_others_run_no_tile(device: torch.device) -> None:
    place = Place(device, torch.float32)
    gate_up = torch.randn(EXPERTS, 2 * INNER, HIDDEN, device=device) * 0.1
    down = torch.randn(EXPERTS, HIDDEN, INNER, device=device) * 0.1
    x, factors, chosen = routed(33, place)
    chosen = torch.tensor([1, 3], device=device).expand(33, 2)
    got = experts("w8a16")(gate_up, down, 0)(x, factors, chosen)
    assert_near(got, one_after_another(gate_up, down, 0, (x, factors, chosen)))
    assert sort_pairs(factors, chosen, range(EXPERTS)).bounds.tolist() == [0, 0, 33, 33, 66]


def test_no_token_at_all_is_no_error(device: torch.device) -> None:
    gate_up = torch.randn(EXPERTS, 2 * INNER, HIDDEN, device=device)
    down = torch.randn(EXPERTS, HIDDEN, INNER, device=device)
    assert experts("w8a16")(gate_up, down, 0)(*routed(0, Place(device, torch.float32))).shape == (0, HIDDEN)


@pytest.mark.gpu
def test_a_captured_step_follows_new_routing() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    place = Place(torch.device("cuda"), torch.bfloat16)
    gate_up = (torch.randn(EXPERTS, 2 * INNER, HIDDEN) * 0.1).to(place.device, place.dtype)
    down = (torch.randn(EXPERTS, HIDDEN, INNER) * 0.1).to(place.device, place.dtype)
    run, fixed = experts("w8a16")(gate_up, down, 0), routed(9, place)
    run(*fixed)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(*fixed)
    for now, new in zip(fixed, routed(9, place), strict=True):
        now.copy_(new)
    graph.replay()
    assert_near(out, one_after_another(gate_up.float(), down.float(), 0, fixed))
