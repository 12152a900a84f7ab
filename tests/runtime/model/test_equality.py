"""Greedy tokens equal transformers' generate, whatever else runs and however the work is cut."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from runtime.engine.runner import Runner
from runtime.ipc import Sampling
from runtime.model.checkpoint import Checkpoint, read_model_spec
from runtime.model.decoder import load_decoder
from runtime.ops.ops import REFERENCE, Ops, choose
from tests.lab import checkpoints
from tests.lab.offline import Served, serve

CPU = torch.device("cpu")
NEW_TOKENS = 16
BLOCK = 16


class Family:
    """A checkpoint on disk, and what transformers generates from it."""

    def __init__(self, name: str, folder: Path, *, halves: bool = False) -> None:
        """`halves`: all weights are numbers of bfloat16."""
        self.model = checkpoints.save(name, folder, shard="100KB")
        if halves:
            for parameter in self.model.parameters():  # not the model: its rotary frequencies would be rounded too
                parameter.data = parameter.data.bfloat16().float()
            self.model.save_pretrained(folder, max_shard_size="100KB")
        self.folder = folder
        rng = random.Random(name)
        shared = [rng.randrange(checkpoints.VOCAB) for _ in range(40)]
        lengths = [1, 2, 15, 16, 17, 33, *[rng.randrange(3, 90) for _ in range(24)]]
        self.prompts = [[rng.randrange(checkpoints.VOCAB) for _ in range(n)] for n in lengths]
        self.prompts += [[*shared, 1, 2, 3], [*shared, 4, 5]]
        self.expected = [checkpoints.greedy(self.model, p, NEW_TOKENS) for p in self.prompts]

    def run(self, ops: Ops, *, blocks: int = 400, budget: int = 512, seqs: int = 32) -> Served:
        """All prompts, submitted together."""
        spec = read_model_spec(self.folder)
        model = load_decoder(spec, Checkpoint(self.folder), ops, device=CPU, dtype=torch.float32, max_model_len=512)
        runner = Runner(model, device=CPU, dtype=torch.float32, block_size=BLOCK)
        sampling = Sampling(NEW_TOKENS, temperature=0, ignore_eos=True)
        requests = [(prompt, sampling) for prompt in self.prompts]
        return serve(runner, requests, blocks=blocks, budget=budget, seats=seqs)


@pytest.fixture(scope="module", params=list(checkpoints.CONFIGS))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def fast() -> Ops:
    return choose(CPU, torch.float32)


def test_in_a_batch_of_32_with_the_reference_ops(family: Family) -> None:
    assert family.run(REFERENCE).tokens == family.expected


def test_in_a_batch_of_32_with_the_fast_ops(family: Family, fast: Ops) -> None:
    assert family.run(fast).tokens == family.expected


@pytest.mark.parametrize("name", ["llama3-rope", "qwen3-moe"])
def test_weights_in_bfloat16_are_computed_with_in_float32(name: str, fast: Ops, tmp_path: Path) -> None:
    family = Family(name, tmp_path, halves=True)
    assert family.run(fast).tokens == family.expected


def test_alone(family: Family, fast: Ops) -> None:
    assert family.run(fast, seqs=1).tokens == family.expected


def test_in_chunks_of_16_tokens(family: Family, fast: Ops) -> None:
    assert family.run(fast, budget=16).tokens == family.expected


def test_through_forced_preemption(family: Family, fast: Ops) -> None:
    served = family.run(fast, blocks=16, budget=64)
    assert served.scheduler.preemptions > 0
    assert served.tokens == family.expected


def test_after_a_prefix_cache_hit(family: Family, fast: Ops) -> None:
    served = family.run(fast, seqs=1)
    assert served.scheduler.prefix_hits >= 32
    assert served.tokens == family.expected


def test_the_families_are_all_covered() -> None:
    from runtime.model_spec import FAMILIES

    built: Callable[[str], str] = lambda name: checkpoints.CONFIGS[name]().model_type  # noqa: E731
    assert {built(name) for name in checkpoints.CONFIGS} == set(FAMILIES.values())
