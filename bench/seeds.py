"""How often a seed does not give the same tokens again: `python -m bench.seeds FOLDER [--dtype bfloat16] [--out FILE]`.

A request's random numbers depend on its seed and positions alone, so in exact arithmetic its tokens never depend on
what else runs. Rounding does depend on it: a matrix product over 32 rows may add up in another order than one over a
single row. Where that flips a token, the request has diverged. Each request is run alone, then among others, then
where the KV pool is so small that requests are preempted; what is counted is how many end with other tokens than alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from runtime.engine.blocks import BlockPool
from runtime.engine.runner import Runner
from runtime.engine.scheduler import Scheduler
from runtime.engine.sequence import Sequence
from runtime.ipc import Sampling
from runtime.model.checkpoint import Checkpoint, read_model_spec
from runtime.model.decoder import load_decoder
from runtime.ops.ops import choose

BLOCK = 16
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Divergence:
    """`diverged` of `requests` got other tokens than alone; `first` are the output positions where that began."""

    setting: str
    requests: int
    tokens: int
    diverged: int
    first: list[int]
    preemptions: int


def run(
    runner: Runner, requests: list[tuple[list[int], Sampling]], *, blocks: int, seqs: int, budget: int
) -> tuple[list[list[int]], int]:
    """(output tokens of each request, preemptions), all submitted together."""
    runner.allocate(blocks)
    pool = BlockPool(blocks, BLOCK)
    scheduler = Scheduler(pool, max_model_len=512, max_num_seqs=seqs, max_batched_tokens=budget, prefix_cache=False)
    sequences = [Sequence(str(number), prompt, sampling) for number, (prompt, sampling) in enumerate(requests)]
    for sequence in sequences:
        scheduler.add(sequence)
    while scheduler.has_work:
        rows = scheduler.plan()
        scheduler.apply(rows, [sample.token for sample in runner.step(rows)])
        for row in rows:
            if row.samples and row.seq.finish_reason(frozenset(), 512):
                scheduler.finish(row.seq)
    return [sequence.tokens[sequence.num_prompt :] for sequence in sequences], scheduler.preemptions


def measure(folder: Path, dtype: torch.dtype, count: int, length: int) -> list[Divergence]:
    """Runs `count` requests of `length` output tokens at temperature 1 in each setting."""
    spec = read_model_spec(folder)
    model = load_decoder(spec, Checkpoint(folder), choose(CPU, dtype), device=CPU, dtype=dtype, max_model_len=512)
    runner = Runner(model, device=CPU, dtype=dtype, block_size=BLOCK)
    torch.manual_seed(0)
    prompts = [torch.randint(0, spec.vocab_size, (4 + number % 29,)).tolist() for number in range(count)]
    sampling = [Sampling(length, temperature=1.0, seed=number, ignore_eos=True) for number in range(count)]
    requests = list(zip(prompts, sampling, strict=True))
    alone = [run(runner, [request], blocks=40, seqs=1, budget=512)[0][0] for request in requests]
    # Preempted: room for about a third of what the requests need together.
    squeezed = max(40, count * (33 + length) // BLOCK // 3)
    settings = {
        "alone again": (40, 1, 512),
        "8 together": (count * 40, 8, 512),
        "32 together": (count * 40, 32, 512),
        "32 together, preempted, prompts in chunks of 24": (squeezed, 32, 24 + 32),
    }
    found: list[Divergence] = []
    for name, (blocks, seqs, budget) in settings.items():
        tokens, preemptions = run(runner, requests, blocks=blocks, seqs=seqs, budget=budget)
        first = [
            next(at for at, (one, other) in enumerate(zip(a, b, strict=True)) if one != other)
            for a, b in zip(alone, tokens, strict=True)
            if a != b
        ]
        found.append(Divergence(name, count, length, len(first), first, preemptions))
        print(f"{name}: {len(first)} of {count} diverged, {preemptions} preemptions", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = measure(given.folder, getattr(torch, given.dtype), given.requests, given.tokens)
    report = json.dumps({"dtype": given.dtype, "settings": [asdict(one) for one in found]}, indent=1) + "\n"
    if given.out is None:
        print(report, end="")
    else:
        given.out.write_text(report)


if __name__ == "__main__":
    main()
