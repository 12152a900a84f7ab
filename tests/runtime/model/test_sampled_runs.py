"""Sampled requests through model and scheduler: log-probabilities like transformers', draws that depend on nobody."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from runtime.engine.runner import Runner
from runtime.ipc import Sampling
from runtime.model.checkpoint import Checkpoint, read_model_spec
from runtime.model.decoder import load_decoder
from runtime.ops.ops import choose
from runtime.ops.sampling import Sample
from tests.lab import checkpoints
from tests.lab.offline import serve

CPU = torch.device("cpu")
BLOCK = 16
NEW_TOKENS = 12


class Served:
    """One small checkpoint, loaded as the engine loads it."""

    def __init__(self, folder: Path) -> None:
        self.reference: PreTrainedModel = checkpoints.save("qwen3", folder, shard="100KB")
        spec = read_model_spec(folder)
        ops = choose(CPU, torch.float32)
        model = load_decoder(spec, Checkpoint(folder), ops, device=CPU, dtype=torch.float32, max_model_len=512)
        self.runner = Runner(model, device=CPU, dtype=torch.float32, block_size=BLOCK)

    def run(
        self, requests: list[tuple[list[int], Sampling]], *, blocks: int = 200, budget: int = 128
    ) -> list[list[Sample]]:
        """The samples of every request, all submitted together."""
        return serve(self.runner, requests, blocks=blocks, budget=budget, seats=16).samples


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(4)
    return [[rng.randrange(checkpoints.VOCAB) for _ in range(length)] for length in (1, 7, 16, 40, 90, 23)]


def sampled(seed: int) -> Sampling:
    return Sampling(NEW_TOKENS, temperature=0.9, top_p=0.95, top_k=40, seed=seed, ignore_eos=True, logprobs=3)


def test_log_probabilities_equal_those_of_transformers(served: Served, prompts: list[list[int]]) -> None:
    found = served.run([(prompt, sampled(number)) for number, prompt in enumerate(prompts)])
    for prompt, samples in zip(prompts, found, strict=True):
        tokens = [sample.token for sample in samples]
        with torch.inference_mode():
            logits = served.reference(torch.tensor([[*prompt, *tokens]])).logits[0].float()
        expected = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        for row, sample in zip(expected, samples, strict=True):
            assert sample.logprobs is not None
            assert sample.logprobs.chosen == pytest.approx(float(row[sample.token]), abs=1e-4)
            assert [value for _, value in sample.logprobs.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


def test_a_seed_gives_the_same_tokens_alone_in_a_batch_and_through_preemption(
    served: Served, prompts: list[list[int]]
) -> None:
    requests = [(prompt, sampled(number)) for number, prompt in enumerate(prompts)]
    alone = [[sample.token for sample in served.run([request])[0]] for request in requests]
    together = served.run(requests)
    squeezed = served.run(requests, blocks=12, budget=32)
    assert [[sample.token for sample in samples] for samples in together] == alone
    assert [[sample.token for sample in samples] for samples in squeezed] == alone


def test_another_seed_gives_other_tokens(served: Served, prompts: list[list[int]]) -> None:
    first, second = served.run([(prompts[3], sampled(1)), (prompts[3], sampled(2))])
    assert [sample.token for sample in first] != [sample.token for sample in second]


def test_a_strong_frequency_penalty_lets_no_token_come_twice(served: Served, prompts: list[list[int]]) -> None:
    sampling = Sampling(60, temperature=0.0, ignore_eos=True, frequency_penalty=1000.0)
    (samples,) = served.run([(prompts[1], sampling)])
    assert len({sample.token for sample in samples}) == 60


def test_a_bias_forces_its_token(served: Served, prompts: list[list[int]]) -> None:
    (samples,) = served.run([(prompts[2], Sampling(4, ignore_eos=True, logit_bias=((42, 100.0),)))])
    assert [sample.token for sample in samples] == [42] * 4
