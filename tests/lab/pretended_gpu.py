"""A GPU that is played on the CPU: what torch and CUDA would refuse, or make the host wait for, shows without a GPU.

    with pretended_gpu() as gpu:            what is made on "cuda" or sent there is OnGpu: CPU memory with a mark
        runner = …                          a call that mixes marked and unmarked ones is an error
        with gpu.watched():                 and so is whatever makes the host wait for the device
            runner.launch(rows)

A copy to the host that nobody waits for brings nothing before an event behind it has been waited for. A CUDA graph is a
tape of the calls that were made while it was captured: a replay runs none of our Python, so that what the host decided
is decided, and results are written where the first ones lie. Triton's kernels run in its interpreter.

Not played: streams that overtake each other, memory that runs out, bfloat16 in kernels, several GPUs, speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from triton.runtime import interpreter

DEVICE = torch.device("cuda:0")
# Their result is on the host, or its shape depends on what lies on the device.
WAITING = {
    "item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__contains__", "equal", "allclose",
    "is_nonzero", "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount",
}  # fmt: skip
Call = Callable[[], Any]


class OnGpu(Tensor):
    """A tensor that stands for one on the GPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class Pinned(Tensor):
    """A tensor of the host that the GPU may read while the host goes on."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class PretendedGpu(TorchFunctionMode):
    """Runs each call of torch on the CPU, marks its results, and holds it to what a GPU would do."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []  # the calls that have made the host wait
        self.replays = 0
        self._refusal: str | None = None
        self._tape: list[Call] | None = None
        self._arriving: list[Call] = []

    @contextmanager
    def watched(self, refusal: str = "the host waits for the device") -> Iterator[None]:
        """A call that waits raises RuntimeError."""
        before, self._refusal = self._refusal, refusal
        try:
            yield
        finally:
            self._refusal = before

    @contextmanager
    def capturing(self, tape: list[Call]) -> Iterator[None]:
        self._tape = tape
        try:
            with self.watched("operation not permitted when stream is capturing"):
                yield
        finally:
            self._tape = None

    def wait(self, name: str) -> None:
        self.waits.append(name)
        if self._refusal is not None:
            raise RuntimeError(f"{name}: {self._refusal}")

    def arrivals(self) -> list[Call]:
        """The copies to the host that have been started since the last time."""
        found, self._arriving = self._arriving, []
        return found

    def run(self, call: Call) -> Any:
        """The results of `call`, marked; replays write theirs into the same memory."""
        results = call()
        if self._tape is not None:

            def again() -> None:
                for place, value in zip(tree_leaves(results), tree_leaves(call()), strict=True):
                    if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                        place.copy_(value)

            self._tape.append(again)
        return tree_map(lambda leaf: leaf.as_subclass(OnGpu) if isinstance(leaf, Tensor) else leaf, results)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        marked = any(isinstance(leaf, OnGpu) for leaf in tree_leaves((args, kwargs)))
        if func == Tensor.device.__get__:
            return DEVICE if marked else torch.device("cpu")
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return marked
        if func == Tensor.pin_memory:
            return args[0].clone().as_subclass(Pinned)
        if func == Tensor.to:
            return self._moved(*args, **kwargs)
        if func == Tensor.cpu:
            return self._moved(args[0], "cpu")
        device = kwargs.get("device")
        made_here = device is not None and torch.device(device).type == "cuda"
        if not marked and not made_here:
            return func(*args, **kwargs)
        self._check(func.__name__, args, kwargs)
        if made_here:
            kwargs["device"] = "cpu"
        plain, named = _plain(args), _plain(kwargs)
        return self.run(lambda: func(*plain, **named))

    def _check(self, name: str, args: Any, kwargs: Any) -> None:
        host = _on_host((args, kwargs))
        if name in WAITING or name in ("tensor", "as_tensor"):
            self.wait(name)
        elif host and name in ("copy_", "__setitem__"):
            self.wait(f"{name} of host memory")
        elif host:
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, found cuda:0 and cpu")
        elif name == "repeat_interleave" and "output_size" not in kwargs:
            self.wait(name)
        elif name in ("__getitem__", "__setitem__", "index_put_"):
            masked = any(isinstance(x, Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1]))
            filled = name == "__setitem__" and not isinstance(args[2], Tensor)
            if masked and not filled:
                self.wait(f"{name} with a mask")

    def _moved(self, source: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`source.to(*args, **kwargs)`"""
        copied = kwargs.pop("copy", False)
        device, dtype, at_once, _ = torch._C._nn._parse_to(*args, **kwargs)
        here = isinstance(source, OnGpu)
        there = here if device is None else device.type == "cuda"
        plain, dtype = source.as_subclass(Tensor), dtype or source.dtype
        if here and there:
            return self.run(lambda: plain.to(dtype, copy=copied))  # type: ignore[no-any-return]
        if not here and not there:
            return source.to(dtype, copy=copied)
        if self._tape is not None:
            raise RuntimeError("a recording reads or writes host memory")
        value = plain.to(dtype, copy=True)
        if there:
            if not (at_once and isinstance(source, Pinned)):
                self.wait("copy to the device")
            return value.as_subclass(OnGpu)
        if not at_once:
            self.wait("copy to the host")
            return value
        host = torch.zeros_like(value)
        self._arriving.append(lambda: host.copy_(value))
        return host


class Graph:
    """torch.cuda.CUDAGraph"""

    def __init__(self, gpu: PretendedGpu) -> None:
        self.tape: list[Call] = []
        self._gpu = gpu

    @torch.inference_mode()
    def replay(self) -> None:
        self._gpu.replays += 1
        with torch._C.DisableTorchFunction():
            for call in self.tape:
                call()


class Event:
    """torch.cuda.Event"""

    def __init__(self, gpu: PretendedGpu) -> None:
        self._gpu = gpu
        self._behind: list[Call] = []

    def record(self) -> None:
        self._behind = self._gpu.arrivals()

    @torch.inference_mode()
    def synchronize(self) -> None:
        self._gpu.wait("event")
        for arrive in self._behind:
            arrive()


@contextmanager
def pretended_gpu(total: int = 1 << 30) -> Iterator[PretendedGpu]:
    """A GPU of `total` bytes and compute capability 9.0, while the block lasts."""
    gpu = PretendedGpu()
    launch, generator = interpreter.GridExecutor.__call__, torch.Generator

    def launched(grid: Any, *args: Any, **kwargs: Any) -> None:
        if _on_host((args, kwargs)):
            raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        plain = _plain(args)
        with torch._C.DisableTorchFunction():
            gpu.run(lambda: launch(grid, *plain, **kwargs))

    functions = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "set_device": lambda device: None,
        "synchronize": lambda *device: gpu.wait("synchronize"),
        "empty_cache": lambda: None,
        "mem_get_info": lambda *device: (total // 2, total),
        "memory_allocated": lambda *device: 0,
        "get_device_capability": lambda *device: (9, 0),
        "get_device_properties": lambda *device: SimpleNamespace(name="pretended", total_memory=total),
        "Event": lambda: Event(gpu),
        "CUDAGraph": lambda: Graph(gpu),
        "graph_pool_handle": object,
        "graph": lambda graph, **options: gpu.capturing(graph.tape),
    }
    with pytest.MonkeyPatch.context() as patch, gpu:
        for name, function in functions.items():
            patch.setattr(torch.cuda, name, function)
        patch.setattr(torch, "Generator", lambda device=None: generator())
        patch.setattr(interpreter.GridExecutor, "__call__", launched)
        yield gpu


def _plain(values: Any) -> Any:
    return tree_map(lambda leaf: leaf.as_subclass(Tensor) if isinstance(leaf, OnGpu) else leaf, values)


def _on_host(values: Any) -> bool:
    """A tensor of the host is among them; a single number that is one may be."""
    return any(isinstance(x, Tensor) and not isinstance(x, OnGpu) and x.dim() > 0 for x in tree_leaves(values))
