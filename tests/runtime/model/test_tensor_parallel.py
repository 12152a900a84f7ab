"""A model that several ranks hold says what it says on one: tokens, log-probabilities and logits, in float32."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from runtime.engine.runner import Runner
from runtime.engine.scheduler import Row
from runtime.engine.sequence import Sequence
from runtime.ipc import Sampling
from runtime.model.checkpoint import read_model_spec
from runtime.model.group import Group, Share
from tests.lab import checkpoints, fp8_checkpoints
from tests.lab.offline import Served, serve
from tests.runtime.model.rank_host import BLOCK, MAX_MODEL_LEN, Ranks, load, ranks

NEW_TOKENS = 10
ask = functools.partial(serve, blocks=200, budget=256, seats=16, max_model_len=MAX_MODEL_LEN)
LIKE_THE_DEMO = LlamaConfig(
    vocab_size=250,  # 3 ranks hold 128, 122 and 0 rows of it
    hidden_size=72,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=512,
    tie_word_embeddings=True,
    attention_bias=True,  # the demo has no biases; only one rank may add those of o and down
    mlp_bias=True,
    bos_token_id=None,
    eos_token_id=None,
)
FP8 = "qwen3-moe-fp8"
FAST_ON_2 = ("qwen2", "qwen3-moe")
SPLITS = [
    pytest.param((FP8, 2), marks=pytest.mark.slow),
    ("demo-like", 3),
    *[(name, 2) for name in FAST_ON_2],
    *[pytest.param((name, 2), marks=pytest.mark.slow) for name in checkpoints.CONFIGS if name not in FAST_ON_2],
    *[(name, 4) for name in checkpoints.CONFIGS],  # more ranks than KV heads
]


class Case:
    """One checkpoint, some requests, and what one rank answers."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        if name == "demo-like":
            checkpoints.save_config(LIKE_THE_DEMO, folder, shard="100KB")
        elif name == FP8:
            fp8_checkpoints.save(fp8_checkpoints.qwen3_moe_for_ranks(), folder)
            self.folder = folder / "fp8"
        else:
            checkpoints.save(name, folder, shard="100KB")
        rng = random.Random(name)
        shared = [rng.randrange(250) for _ in range(40)]
        prompts = [[rng.randrange(250) for _ in range(length)] for length in (1, 15, 16, 17, 33, 70)]
        prompts += [[*shared, 1, 2, 3], [*shared, 4, 5]]
        greedy = Sampling(NEW_TOKENS, temperature=0, ignore_eos=True, logprobs=5)
        drawn = [
            Sampling(NEW_TOKENS, temperature=0.9, top_p=0.9, seed=seed, ignore_eos=True, logprobs=2)
            for seed in range(len(prompts))
        ]
        self.requests = [(prompt, greedy) for prompt in prompts] + list(zip(prompts, drawn, strict=True))
        self.alone = load(self.folder)
        self.expected = ask(self.alone, self.requests)


@torch.inference_mode()
def logits(runner: Runner, prompt: list[int]) -> torch.Tensor:
    """[1, V] after `prompt`."""
    runner.allocate(12)
    request = Sequence("", prompt, Sampling(1))
    request.blocks = list(range(1, 1 + -(-len(prompt) // BLOCK)))
    return runner.logits([Row(request, 0, len(prompt), samples=True)])


@pytest.fixture(scope="module")
def rank_sets() -> Iterator[Callable[[int], Ranks]]:
    """Ranks by their number. One set lives at a time, as torch has one default group."""
    with ExitStack() as living:
        sets: dict[int, Ranks] = {}

        def of(size: int) -> Ranks:
            if size not in sets:
                living.close()
                sets.clear()
                sets[size] = living.enter_context(ranks(size))
            return sets[size]

        yield of


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    return functools.cache(lambda name: Case(name, tmp_path_factory.mktemp(name)))


@dataclass(frozen=True, slots=True)
class Split:
    """A case whose model several ranks hold, and what they answer."""

    case: Case
    runner: Runner
    answers: Served


def described(split: tuple[str, int]) -> str:
    return f"{split[0]}-on-{split[1]}"


@pytest.fixture(scope="module", params=SPLITS, ids=described)
def split(
    request: pytest.FixtureRequest, rank_sets: Callable[[int], Ranks], cases: Callable[[str], Case]
) -> Iterator[Split]:
    name, size = request.param
    case = cases(name)
    with rank_sets(size).serve(case.folder) as runner:
        yield Split(case, runner, ask(runner, case.requests))


def test_tokens_and_log_probabilities_are_those_of_one_rank(split: Split) -> None:
    assert split.answers.tokens == split.case.expected.tokens
    for one, many in zip(chain(*split.case.expected.samples), chain(*split.answers.samples), strict=True):
        assert one.logprobs is not None
        assert many.logprobs is not None
        assert many.logprobs.chosen == pytest.approx(one.logprobs.chosen, abs=1e-4)
        assert many.logprobs.rank == one.logprobs.rank
        assert [value for _, value in many.logprobs.top] == pytest.approx(
            [value for _, value in one.logprobs.top], abs=1e-4
        )


def test_logits_are_those_of_one_rank_and_cover_the_vocabulary(split: Split) -> None:
    prompt = split.case.requests[5][0]
    torch.testing.assert_close(logits(split.runner, prompt), logits(split.case.alone, prompt), atol=1e-4, rtol=0)


def test_chunks_and_preemption_change_not_one_bit(split: Split) -> None:
    found = ask(split.runner, split.case.requests, blocks=14, budget=24)
    assert found.scheduler.preemptions > 0
    assert found.samples == split.answers.samples


@pytest.mark.parametrize("recorded", [(1, 2, 4, 8), pytest.param((), marks=pytest.mark.slow)], ids=str)
def test_steps_that_run_ahead_and_are_recorded_change_not_one_bit(split: Split, recorded: tuple[int, ...]) -> None:
    some = slice(9, 14)
    found = ask(split.runner, split.case.requests[some], blocks=14, budget=64, overlap=True, recorded=recorded)
    assert found.scheduler.preemptions > 0
    assert found.samples == split.answers.samples[some]


def test_a_prefix_cache_hit_changes_not_one_bit(split: Split) -> None:
    found = ask(split.runner, split.case.requests[6:8], seats=1)
    assert found.scheduler.prefix_hits >= 2 * BLOCK
    assert found.samples == split.answers.samples[6:8]


@pytest.mark.parametrize("share", SPLITS, ids=described)
def test_every_weight_is_held_by_some_rank_and_only_kv_heads_by_several(
    share: tuple[str, int], cases: Callable[[str], Case]
) -> None:
    name, size = share
    spec = read_model_spec(cases(name).folder)
    shares = [Share.of(spec, Group(rank, size)) for rank in range(size)]
    whole = Share.of(spec, Group())
    for part in ("q", "inner", "experts"):
        assert [*chain(*(getattr(share, part) for share in shares))] == [*getattr(whole, part)]
    assert {*chain(*(share.kv for share in shares))} == {*whole.kv}
    assert {*chain(*(share.vocab for share in shares))} >= {*whole.vocab}
