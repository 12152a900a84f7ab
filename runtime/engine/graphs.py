"""Decode steps of a few sizes, recorded once and replayed: a replay is one launch for the whole model.

    sizes                 1  2  4  8  16  24 … 256     recorded largest first, in one pool of memory for all of them
    a step of 5 decodes   t t t t t|p p p              runs as 8: each p stands on the padding block and sees one key

A recording is bound to addresses: inputs are copied into buffers that stay, logits and tokens are found in others. It
holds the launches, not the numbers, so that whatever a kernel depends on must be read from the device: contexts and
tables are, `Batch.rows` is not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from runtime.engine.blocks import PADDING_BLOCK
from runtime.engine.scheduler import Row
from runtime.ops.batch import Batch
from runtime.ops.sampling import Choice, SamplingRow, choice_of, choose, settings, to_device

MAX_SIZE = 256
SMALL, STEP = (1, 2, 4), 8  # vLLM's ladder

Run = Callable[[], None]
Record = Callable[[Run], Run]  # a function on the device → what does the same again

log = logging.getLogger("engine")


def graph_sizes(max_num_seqs: int) -> list[int]:
    """The sizes up to the first that holds `max_num_seqs` requests, or up to the largest."""
    ladder = [*SMALL, *range(STEP, MAX_SIZE + 1, STEP)]
    return [size for size, smaller in zip(ladder, [0, *ladder], strict=False) if smaller < max_num_seqs]


def recorder(device: torch.device) -> Record:
    """CUDA graphs on a GPU; on a CPU, where launches cost nothing, the function itself."""
    return CudaRecorder() if device.type == "cuda" else lambda run: run


class CudaRecorder:
    """Records what a function launches. Recordings share one pool of memory: no two may run at once."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Run:
        run()  # kernels are compiled, libraries choose their algorithms: nothing that may be recorded
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads (NCCL's watchdog) may ask the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            run()
        return graph.replay


class DecodeGraphs:
    """The recorded steps of one model over one KV cache; both must stay where they are.

    `forward`: the model, Batch → logits. `width`: blocks of the longest request. `vocab_size`: None on ranks that
    choose no tokens.
    """

    def __init__(
        self,
        forward: Callable[[Batch], Tensor],
        record: Record,
        sizes: Iterable[int],
        *,
        width: int,
        vocab_size: int | None,
        device: torch.device,
    ) -> None:
        self.sizes = sorted(sizes)
        largest = self.sizes[-1]
        indices = partial(torch.zeros, dtype=torch.int64, device=device)
        self._forward = forward
        self._tokens, self._positions, self._slots = indices(largest), indices(largest), indices(largest)
        self._contexts = torch.ones(largest, dtype=torch.int32, device=device)
        self._tables = torch.full((largest, width), PADDING_BLOCK, dtype=torch.int32, device=device)
        self._samples = torch.arange(largest, device=device)
        self._starts = torch.arange(largest + 1, dtype=torch.int32, device=device)
        self._numbers = torch.zeros(5, largest, dtype=torch.float64, device=device)
        self._logits = None if vocab_size is None else torch.zeros(largest, vocab_size, device=device)
        self._chosen = indices(largest)
        record_step, record_choice = _or_launch(record), _or_launch(record)
        descending = self.sizes[::-1]
        self._steps = {size: record_step(partial(self._run_step, size)) for size in descending}
        self._choices: dict[tuple[int, Choice], Run] = {}
        if self._logits is not None:
            for size in descending:
                for choice in reversed(Choice):
                    self._choices[size, choice] = record_choice(partial(self._run_choice, size, choice))

    def size_for(self, rows: list[Row]) -> int | None:
        """The recorded size for a step of these rows; None when it is not one of decodes, or too large."""
        if any(row.count > 1 or not row.samples for row in rows):
            return None
        return next((size for size in self.sizes if size >= len(rows)), None)

    def holds(self, batch: Batch) -> bool:
        """Whether `forward` can run `batch`: decodes only, padded to a recorded size."""
        return len(batch.tokens) == len(batch.samples) == len(batch.rows) and len(batch.rows) in self._steps

    def forward(self, batch: Batch) -> Tensor:
        """Logits [size, V] of the whole batch, padding included; what is returned is overwritten by the next step."""
        size, width = batch.tables.shape
        self._tokens[:size] = batch.tokens
        self._positions[:size] = batch.positions
        self._slots[:size] = batch.slots
        self._contexts[:size] = batch.contexts
        self._tables[:size, :width] = batch.tables
        self._steps[size]()
        return self._tokens.new_empty(0) if self._logits is None else self._logits[:size]

    def choose(self, rows: list[SamplingRow], size: int) -> Tensor:
        """A token [R] for each of the plain rows, whose logits the newest `forward` of `size` has left."""
        self._numbers[:, :size] = to_device(settings(rows, size), self._numbers.device)
        self._choices[size, choice_of(rows)]()
        return self._chosen[: len(rows)]

    def _run_step(self, size: int) -> None:
        batch = Batch(
            tokens=self._tokens[:size],
            positions=self._positions[:size],
            slots=self._slots[:size],
            starts=self._starts[: size + 1],
            contexts=self._contexts[:size],
            tables=self._tables[:size],
            samples=self._samples[:size],
            rows=((1, 1),) * size,
        )
        logits = self._forward(batch)
        if self._logits is not None:
            self._logits[:size] = logits

    def _run_choice(self, size: int, choice: Choice) -> None:
        assert self._logits is not None
        self._chosen[:size] = choose(self._logits[:size], self._numbers[:, :size], choice)


def _or_launch(record: Record) -> Record:
    """`record`, until it fails: from then on functions are called as they are, with the same result, only slower."""
    failed = False

    def try_to_record(run: Run) -> Run:
        nonlocal failed
        if not failed:
            try:
                return record(run)
            except RuntimeError as error:
                failed = True
                log.error("no CUDA graphs, kernels are launched one by one (slower): %s", error)
        return run

    return try_to_record
