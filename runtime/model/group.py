"""Tensor parallelism: which part of a model each rank holds, and how the parts become whole again.

Megatron-LM's cut (arXiv 1909.08053): a matrix whose outputs are shared out is followed by one whose inputs are, so that
a decoder layer needs two all-reduces, one after `o` and one after `down`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from runtime.model_spec import ModelSpec
from runtime.sizing import VOCAB_PADDING

JOIN_TIMEOUT = timedelta(minutes=5)  # from the first rank that has loaded to the last one that has joined


@dataclass(frozen=True, slots=True)
class Group:
    """The ranks that hold one model together: this process is `rank` of `size`. Rank 0 is the driver."""

    rank: int = 0
    size: int = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of every rank's `x`, the same bits on each.

        On CPUs it is taken in the order of ranks, so that a request's numbers do not depend on its neighbours: gloo's
        ring starts each element's sum at a rank that depends on the tensor's size. NCCL has its own order.
        """
        if x.numel() == 0:
            return x
        if x.is_cuda:
            dist.all_reduce(x)
            return x
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x)
        total = parts[0]
        for part in parts[1:]:
            total += part
        return total

    def gather(self, x: Tensor) -> Tensor:
        """On rank 0 the columns of all ranks side by side; elsewhere `x`."""
        if x.numel() == 0:
            return x.new_empty(x.shape[0], x.shape[1] * self.size)
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(x, parts, dst=0)
        return x if parts is None else torch.cat(parts, dim=1)

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's `x` on every rank; elsewhere `x` has its shape and dtype, and is written."""
        if self.size > 1:
            dist.broadcast(x, src=0)
        return x

    def reduced(self, layer: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """`layer` with its output summed over the ranks; `layer` itself when there is one."""
        if self.size == 1:
            return layer
        return lambda x: self.all_reduce(layer(x))


ALONE = Group()


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank holds of each weight; what is not named here it holds whole (norms, router).

        q, inner      rows of q, of gate and of up; columns of o and of down
        kv            rows of k and of v: whole heads; with more ranks than heads, several ranks hold the same one
        vocab         rows of the embedding and of the head; the last ones may lie past the vocabulary: zeros
        experts       whole experts: valid for every size, where an expert's columns may not divide

    4 query heads and 2 KV heads:   size 2   rank 0: q 0 1, kv 0        rank 1: q 2 3, kv 1
                                    size 4   rank 0: q 0, kv 0          rank 1: q 1, kv 0      rank 2: q 2, kv 1 …
    """

    num_heads: int
    num_kv_heads: int
    q: range
    kv: range
    inner: range
    vocab: range
    experts: range

    @classmethod
    def of(cls, spec: ModelSpec, group: Group) -> Share:
        """`group.size` must be a valid size (`runtime.sizing.tp_problem`)."""
        rank, size = group.rank, group.size
        heads, kv_heads = spec.num_heads // size, max(1, spec.num_kv_heads // size)
        first_kv = rank * spec.num_kv_heads // size
        vocab = spec.vocab_size if size == 1 else _padded(spec.vocab_size, VOCAB_PADDING * size) // size
        num_experts = spec.moe.num_experts if spec.moe else 0
        inner = spec.intermediate_size // size
        return cls(
            num_heads=heads,
            num_kv_heads=kv_heads,
            q=range(rank * heads * spec.head_dim, (rank + 1) * heads * spec.head_dim),
            kv=range(first_kv * spec.head_dim, (first_kv + kv_heads) * spec.head_dim),
            inner=range(rank * inner, (rank + 1) * inner),
            vocab=range(rank * vocab, (rank + 1) * vocab),
            experts=range(rank * num_experts // size, (rank + 1) * num_experts // size),
        )


def join(group: Group, device: torch.device, rendezvous: Path) -> None:
    """Connects this rank with the others, which call it too; ranks find each other through the file `rendezvous`.

    NCCL between GPUs (not yet run on GPUs), gloo between CPUs; both use the loopback interface only. The file must be
    new and must stay until the ranks end.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    cuda = device.type == "cuda"
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=dist.FileStore(str(rendezvous), group.size),  # type: ignore[attr-defined]
        rank=group.rank,
        world_size=group.size,
        timeout=JOIN_TIMEOUT,
        device_id=device if cuda else None,
    )


def _padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
