"""The pretended GPU refuses what a GPU refuses, sees what waits, and replays what was recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from runtime.engine.graphs import CudaRecorder
from runtime.ops import triton_elementwise
from runtime.ops.sampling import Arriving, to_device
from tests.lab.pretended_gpu import PretendedGpu, pretended_gpu

CUDA = torch.device("cuda:0")


@pytest.fixture
def gpu() -> Iterator[PretendedGpu]:
    with pretended_gpu() as found:
        yield found


def on_gpu(*values: float) -> Tensor:
    return to_device(torch.tensor(values), CUDA)


def test_what_is_made_there_or_sent_there_is_there(gpu: PretendedGpu) -> None:
    made, sent = torch.zeros(3, device=CUDA), on_gpu(1.0, 2.0, 3.0)
    for tensor in (made, sent, made + sent, sent[1:], sent.sort().values, sent.half().clamp(min=2), sent.new_empty(4)):
        assert tensor.device == CUDA
        assert tensor.is_cuda
    assert not torch.zeros(3).is_cuda
    assert not sent.cpu().is_cuda
    assert sent.cpu().tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "mix",
    [
        lambda there, here: there + here,
        lambda there, here: torch.cat([there, here]),
        lambda there, here: there.index_select(0, here.long()),
        lambda there, here: triton_elementwise.rms_norm(there[None], here, 1e-6),
    ],
)
def test_tensors_of_host_and_device_do_not_mix(mix: Callable[[Tensor, Tensor], Tensor], gpu: PretendedGpu) -> None:
    with pytest.raises((RuntimeError, ValueError), match=r"same device|cpu tensor"):
        mix(on_gpu(1.0, 2.0), torch.tensor([0.0, 1.0]))


def test_a_number_of_the_host_is_welcome(gpu: PretendedGpu) -> None:
    assert (on_gpu(1.0, 2.0) * torch.tensor(3.0)).cpu().tolist() == [3, 6]


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.tolist(),
        lambda x: x[0].item(),
        lambda x: bool((x > 1).all()),
        lambda x: x.cpu(),
        lambda x: x[x > 1],
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: torch.tensor([1.0], device=CUDA),
        lambda x: torch.zeros(2).to(CUDA),
        lambda x: torch.zeros(2).to(CUDA, non_blocking=True),  # not pinned
        lambda x: x.copy_(torch.zeros(2)),
        lambda x: x.repeat_interleave(x.int()),
    ],
)
def test_what_makes_the_host_wait_is_seen(wait: Callable[[Tensor], object], gpu: PretendedGpu) -> None:
    x = on_gpu(1.0, 2.0)
    assert gpu.waits == []
    wait(x)
    assert gpu.waits
    with gpu.watched(), pytest.raises(RuntimeError, match="waits for the device"):
        wait(x)


def test_a_copy_to_the_host_is_there_once_its_event_has_been_waited_for(gpu: PretendedGpu) -> None:
    with gpu.watched():
        arriving = Arriving(on_gpu(1.0, 2.0))
    assert arriving._host.tolist() == [0, 0]
    assert arriving.take().tolist() == [1, 2]


def test_a_replay_computes_from_the_memory_of_the_recording_and_into_it(gpu: PretendedGpu) -> None:
    x, out, factors = on_gpu(1.0, 2.0), torch.zeros(2, device=CUDA), [10.0]

    def run() -> None:
        out.copy_(triton_elementwise.silu_mul(torch.cat([x * factors[0], x])[None])[0])

    replay = CudaRecorder()(run)
    first = out.cpu().tolist()
    x.mul_(2)
    factors[0] = 0.0  # the host's Python is not asked again
    replay()
    assert gpu.replays == 1
    assert first == pytest.approx([10.0, 40.0], rel=1e-3)
    assert out.cpu().tolist() == pytest.approx([40.0, 160.0], rel=1e-3)


@pytest.mark.parametrize(
    "run", [lambda x: x.sum().item(), lambda x: x + to_device(torch.ones(2), CUDA), lambda x: Arriving(x)]
)
def test_a_recording_neither_waits_nor_touches_the_host(run: Callable[[Tensor], object], gpu: PretendedGpu) -> None:
    x = on_gpu(1.0, 2.0)
    with pytest.raises(RuntimeError, match=r"capturing|host memory"):
        CudaRecorder()(lambda: run(x))


def test_nothing_of_it_is_left(gpu: PretendedGpu) -> None:
    gpu.__exit__(None, None, None)
    assert not torch.zeros(1).is_cuda
    gpu.__enter__()
