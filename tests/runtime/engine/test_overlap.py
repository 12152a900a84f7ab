"""Launching a step before the one ahead of it is read changes no answer: the real loop, runner and model, both ways."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig

from runtime.engine.blocks import BlockPool
from runtime.engine.gpu import GpuWatch
from runtime.engine.grammar import Grammars
from runtime.engine.link import ServerLink
from runtime.engine.loop import EngineLoop, Watchdog
from runtime.engine.runner import Runner
from runtime.engine.scheduler import Scheduler
from runtime.engine.sequence import Sequence
from runtime.ipc import Output, Sampling
from runtime.model.checkpoint import Checkpoint, read_model_spec
from runtime.model.decoder import Decoder, load_decoder
from runtime.ops.ops import choose
from tests.lab import checkpoints

CPU = torch.device("cpu")
BLOCK = 4
MAX_MODEL_LEN = 64
END = "<|end|>"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())  # 256 characters, one for each byte
VOCAB = len(ALPHABET) + 1
GRAMMAR = "start: /[0-9a-z]{3,9}/\n"
CONFIG = LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=MAX_MODEL_LEN,
    bos_token_id=None,
    eos_token_id=VOCAB - 1,
)


@dataclass(frozen=True, slots=True)
class Wish:
    """A request to come. `arrives`: before this step; `leaves`: aborted once it has so many tokens."""

    arrives: int
    prompt: list[int]
    sampling: Sampling
    leaves: int | None


class Engine:
    """A small model with a tokenizer of bytes, so that grammars are llguidance's own."""

    def __init__(self, folder: Path) -> None:
        checkpoints.save_config(CONFIG, folder)
        vocabulary = {character: number for number, character in enumerate([*ALPHABET, END])}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([END])
        tokenizer.save(str(folder / "tokenizer.json"))
        self.folder = folder
        self.model: Decoder = load_decoder(
            read_model_spec(folder),
            Checkpoint(folder),
            choose(CPU, torch.float32),
            device=CPU,
            dtype=torch.float32,
            max_model_len=MAX_MODEL_LEN,
        )
        self.grammars = Grammars(folder, VOCAB, [VOCAB - 1])

    def loop(self, *, overlap: bool, blocks: int, budget: int) -> EngineLoop:
        runner = Runner(self.model, device=CPU, dtype=torch.float32, block_size=BLOCK)
        runner.allocate(blocks)
        scheduler = Scheduler(
            BlockPool(blocks, BLOCK), max_model_len=MAX_MODEL_LEN, max_num_seqs=6, max_batched_tokens=budget
        )
        link = ServerLink(self.folder, "r")
        return EngineLoop(scheduler, runner, link, Watchdog(600.0), self.grammars, GpuWatch(), overlap=overlap)

    def add(self, loop: EngineLoop, name: str, wish: Wish) -> None:
        grammar = wish.sampling.grammar
        matcher = None if grammar is None else self.grammars.open(grammar)
        loop.scheduler.add(Sequence(name, wish.prompt, wish.sampling, b"", matcher))

    def serve(self, loop: EngineLoop, wishes: list[Wish]) -> dict[str, list[Output]]:
        """The outputs of each request, all of them through the loop's own steps."""
        found: dict[str, list[Output]] = {str(number): [] for number in range(len(wishes))}
        step = 0
        while loop.scheduler.has_work or any(wish.arrives >= step for wish in wishes):
            for number, wish in enumerate(wishes):
                if wish.arrives == step:
                    self.add(loop, str(number), wish)
            for output in loop.step():
                found[output.id].append(output)
                if sum(len(one.tokens) for one in found[output.id]) == wishes[int(output.id)].leaves:
                    loop.scheduler.abort(output.id)
            loop.scheduler.check()
            step += 1
        assert loop.scheduler.pool.usage == 0.0
        assert loop.scheduler.in_flight == 0
        return found


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(tmp_path_factory.mktemp("llama"))


def answers(found: dict[str, list[Output]]) -> dict[str, list[tuple[object, ...]]]:
    """What a client sees, without what depends on the moment (the prefix cache, the time in the queue)."""
    return {
        name: [(one.tokens, one.finish, one.stopped_by_token, one.error, one.logprobs) for one in outputs]
        for name, outputs in found.items()
    }


def sampling(rng: random.Random) -> Sampling:
    """Anything that a request may ask for."""

    def some(chance: float) -> bool:
        return rng.random() < chance

    return Sampling(
        max_tokens=rng.randint(1, 16),
        temperature=rng.choice([0.0, 0.7, 1.5]),
        top_p=rng.choice([1.0, 0.8]),
        top_k=rng.choice([0, 0, 5]),
        min_p=rng.choice([0.0, 0.05]),
        seed=rng.randrange(1000),
        ignore_eos=some(0.3),
        min_tokens=rng.choice([0, 0, 3]),
        stop_token_ids=tuple(rng.sample(range(VOCAB), 30)) if some(0.5) else (),
        presence_penalty=1.0 if some(0.1) else 0.0,
        repetition_penalty=1.3 if some(0.1) else 1.0,
        logit_bias=((7, 2.0),) if some(0.1) else (),
        logprobs=rng.choice([0, 2]) if some(0.3) else None,
        grammar=GRAMMAR if some(0.1) else None,
    )


def workload(rng: random.Random, count: int = 24) -> list[Wish]:
    """Arrivals over many steps; half of the prompts begin like others."""
    shared = [rng.randrange(VOCAB) for _ in range(20)]
    wishes = []
    for _ in range(count):
        own = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 20))]
        prompt = shared[: rng.randint(1, 20)] + own if rng.random() < 0.5 else own
        leaves = rng.randint(1, 6) if rng.random() < 0.2 else None
        wishes.append(Wish(rng.randrange(40), prompt, sampling(rng), leaves))
    return wishes


@pytest.mark.parametrize("seed", range(8))
def test_every_answer_is_that_of_the_synchronous_loop(engine: Engine, seed: int) -> None:
    rng = random.Random(seed)
    wishes, blocks, budget = workload(rng), rng.choice([16, 20]), rng.choice([9, 24])
    waiting = engine.loop(overlap=False, blocks=blocks, budget=budget)
    ahead = engine.loop(overlap=True, blocks=blocks, budget=budget)
    expected = answers(engine.serve(waiting, wishes))
    assert answers(engine.serve(ahead, wishes)) == expected
    assert min(waiting.scheduler.preemptions, ahead.scheduler.preemptions) > 0
    assert min(waiting.scheduler.prefix_hits, ahead.scheduler.prefix_hits) > 0
    finishes = {output[1] for outputs in expected.values() for output in outputs}
    assert {"stop", "length", None} <= finishes
    assert any(wish.sampling.grammar for wish in wishes)


def steps_ahead(engine: Engine, chosen: list[Sampling]) -> tuple[int, int]:
    """(steps after which another one was already under way, steps in all) of requests that come together."""
    loop = engine.loop(overlap=True, blocks=60, budget=64)
    for number, one in enumerate(chosen):
        engine.add(loop, str(number), Wish(0, [1, 2, number], one, None))
    ahead = steps = 0
    while loop.scheduler.has_work:
        loop.step()
        steps += 1
        ahead += loop.scheduler.in_flight
    return ahead, steps


PLAIN = Sampling(8, temperature=0.0, ignore_eos=True)


def test_a_step_is_under_way_while_plain_tokens_are_read(engine: Engine) -> None:
    ahead, steps = steps_ahead(engine, [PLAIN, PLAIN])
    assert (ahead, steps) == (8, 9)


@pytest.mark.parametrize(
    "waiting",
    [
        Sampling(8, temperature=0.0, ignore_eos=True, frequency_penalty=0.5),
        Sampling(8, temperature=0.0, grammar="start: /[0-9]{20}/\n"),
    ],
    ids=["penalty", "grammar"],
)
def test_no_step_runs_ahead_of_a_request_that_needs_its_newest_token(engine: Engine, waiting: Sampling) -> None:
    ahead, steps = steps_ahead(engine, [PLAIN, waiting])
    assert (ahead, steps) == (8, 16)  # launched, then read: each in a call of its own


def test_a_request_that_ends_by_its_length_costs_no_step_more(engine: Engine) -> None:
    loop = engine.loop(overlap=True, blocks=60, budget=64)
    engine.serve(loop, [Wish(0, [1, 2, 3], PLAIN, None)])
    assert loop.scheduler.steps == PLAIN.max_tokens


def test_a_request_that_ends_by_its_token_costs_one_row_more_and_yields_no_token_more(engine: Engine) -> None:
    loop = engine.loop(overlap=True, blocks=60, budget=64)
    (first, *_) = engine.serve(loop, [Wish(0, [1, 2, 3], PLAIN, None)])["0"]
    stopping = Sampling(8, temperature=0.0, ignore_eos=True, stop_token_ids=tuple(first.tokens))
    before = loop.scheduler.steps
    (output,) = engine.serve(loop, [Wish(0, [1, 2, 3], stopping, None)])["0"]
    assert (output.tokens, output.finish) == (first.tokens, "stop")
    assert loop.scheduler.steps == before + 2


def test_blocks_of_a_request_that_left_are_free_only_after_the_step_that_uses_them(engine: Engine) -> None:
    loop = engine.loop(overlap=True, blocks=60, budget=64)
    engine.add(loop, "a", Wish(0, [1, 2, 3], PLAIN, None))
    loop.step()
    loop.scheduler.abort("a")
    assert loop.scheduler.pool.usage > 0
    assert loop.step() == []
    assert loop.scheduler.pool.usage == 0


def test_a_broken_output_ends_its_request_although_the_next_step_has_begun(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison, embed = 9, engine.model.embed
    broken: Callable[[torch.Tensor], torch.Tensor] = lambda ids: embed(ids).masked_fill(  # noqa: E731
        (ids == poison)[:, None], torch.nan
    )
    wishes = [Wish(0, [5, 6, 7], PLAIN, None), Wish(0, [5, 6, poison], PLAIN, None)]
    alone = engine.serve(engine.loop(overlap=False, blocks=60, budget=64), wishes[:1])
    monkeypatch.setattr(engine.model, "embed", broken)
    found = engine.serve(engine.loop(overlap=True, blocks=60, budget=64), wishes)
    assert [output.finish for output in found["1"]] == ["error"]
    assert answers({"0": found["0"]}) == answers(alone)
