"""Recorded decode steps: padding, copying and the choice of a size change no answer. Here a recording is the function
itself; the CUDA graphs are in tests/runtime/model/test_gpu.py."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from runtime.engine.graphs import Record, Run, graph_sizes
from runtime.engine.runner import Runner
from runtime.engine.scheduler import Row
from runtime.engine.sequence import Sequence
from runtime.ipc import Sampling
from runtime.model.checkpoint import Checkpoint, read_model_spec
from runtime.model.decoder import Decoder, load_decoder
from runtime.ops import reference
from runtime.ops.batch import Batch
from runtime.ops.ops import REFERENCE
from runtime.ops.sampling import Sample
from tests.lab import checkpoints
from tests.lab.offline import serve

CPU = torch.device("cpu")
BLOCK = 16
MAX_MODEL_LEN = 128
WIDTH = MAX_MODEL_LEN // BLOCK
SIZES = (1, 2, 4)
NEW_TOKENS = 8


def attention(query: Tensor, cache: Tensor, batch: Batch, scale: float) -> Tensor:
    """The reference, with lengths from the tensors alone, as a recorded kernel has them."""
    counts = (batch.starts[1:] - batch.starts[:-1]).tolist()
    rows = tuple(zip(counts, batch.contexts.tolist(), strict=True))
    return reference.attention(query, cache, replace(batch, rows=rows), scale)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tmp_path_factory.mktemp("qwen3")
    checkpoints.save("qwen3", folder)
    ops = replace(REFERENCE, attention=attention)
    spec, checkpoint = read_model_spec(folder), Checkpoint(folder)
    return load_decoder(spec, checkpoint, ops, device=CPU, dtype=torch.float32, max_model_len=MAX_MODEL_LEN)


@pytest.fixture
def runner(model: Decoder) -> Runner:
    return Runner(model, device=CPU, dtype=torch.float32, block_size=BLOCK)


class Recorder:
    """Notes what it records; what is replayed runs the function."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def __call__(self, run: Run) -> Run:
        run()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            run()

        return replay


def requests() -> list[tuple[list[int], Sampling]]:
    """Greedy, drawn in every way, and some that no graph can serve."""
    rng = random.Random(5)
    plain = [
        Sampling(NEW_TOKENS, temperature=0.0, ignore_eos=True),
        Sampling(NEW_TOKENS + 3, temperature=0.8, seed=4, ignore_eos=True),
        Sampling(NEW_TOKENS + 5, temperature=1.0, top_k=8, top_p=0.9, seed=5, ignore_eos=True),
        Sampling(NEW_TOKENS, temperature=1.2, min_p=0.1, seed=6, ignore_eos=True),
    ]
    others = [
        Sampling(5, temperature=0.0, ignore_eos=True, logprobs=2),
        Sampling(5, temperature=0.5, seed=7, ignore_eos=True, logit_bias=((3, 1.0),)),
    ]
    return [([rng.randrange(checkpoints.VOCAB) for _ in range(n)], one) for n, one in enumerate([*plain, *others], 3)]


def answers(runner: Runner, *, recorded: Iterable[int] = (), overlap: bool = False) -> list[list[int]]:
    return serve(runner, requests(), blocks=60, max_model_len=128, overlap=overlap, recorded=recorded).tokens


@pytest.mark.parametrize("overlap", [False, True])
def test_answers_with_recorded_steps_are_those_without(runner: Runner, overlap: bool) -> None:
    assert answers(runner, recorded=(1, 2, 4, 8), overlap=overlap) == answers(runner)


def test_steps_of_more_requests_than_the_largest_size_run_unrecorded(runner: Runner) -> None:
    assert answers(runner, recorded=(1, 2)) == answers(runner)


def decode(name: str, tokens: list[int], block: int, sampling: Sampling) -> Row:
    """A request whose newest token is to be computed, on a block of its own."""
    seq = Sequence(name, tokens, sampling)
    seq.blocks = [block]
    return Row(seq, len(tokens) - 1, 1, samples=True)


GREEDY = Sampling(NEW_TOKENS, temperature=0.0)


def recording(runner: Runner) -> Recorder:
    recorder = Recorder()
    runner.allocate(8)
    runner.record(list(SIZES), WIDTH, recorder)
    return recorder


def test_every_size_is_recorded_once_with_each_way_to_choose(runner: Runner) -> None:
    assert recording(runner).recorded == len(SIZES) * (1 + 3)


def test_a_step_of_plain_decodes_is_two_replays(runner: Runner) -> None:
    recorder = recording(runner)
    runner.step([decode(str(n), [5, n], n, GREEDY) for n in (1, 2, 3)])
    assert recorder.replayed == 2


def test_tokens_of_a_row_that_is_not_plain_are_chosen_unrecorded(runner: Runner) -> None:
    recorder = recording(runner)
    runner.step([decode("1", [5, 6], 1, GREEDY), decode("2", [5, 6], 2, Sampling(4, logprobs=1))])
    assert recorder.replayed == 1


def test_a_step_with_a_prompt_in_it_is_not_replayed(runner: Runner) -> None:
    recorder = recording(runner)
    prompt = Sequence("p", [1, 2, 3], GREEDY)
    prompt.blocks = [4]
    runner.step([decode("1", [5, 6], 1, GREEDY), Row(prompt, 0, 3, samples=True)])
    assert recorder.replayed == 0


def test_padding_writes_to_the_padding_block_only(runner: Runner) -> None:
    recording(runner)
    before = [cache[:, 4:].clone() for cache in runner.caches]
    runner.step([decode(str(n), [5, n], n, GREEDY) for n in (1, 2, 3)])
    assert all(torch.equal(cache[:, 4:], old) for cache, old in zip(runner.caches, before, strict=True))


def test_what_a_larger_step_left_in_the_buffers_does_not_reach_a_smaller_one(runner: Runner) -> None:
    recording(runner)
    row = decode("1", [5, 9], 1, GREEDY)
    (alone,) = runner.step([row])
    runner.step([decode(str(n), [7, n], n, Sampling(9, temperature=1.0, top_k=3)) for n in (2, 3, 4, 5)])
    assert runner.step([row]) == [alone]


def test_a_new_kv_pool_is_not_served_by_recordings_of_the_old_one(runner: Runner) -> None:
    recorder = recording(runner)
    runner.allocate(8)
    runner.step([decode("1", [5, 6], 1, GREEDY)])
    assert recorder.replayed == 0


def test_what_cannot_be_recorded_is_run_with_the_same_result(runner: Runner, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(run: Run) -> Run:
        raise RuntimeError("operation not permitted when stream is capturing")

    rows = [decode("1", [5, 6], 1, GREEDY), decode("2", [8, 6], 2, Sampling(9, temperature=1.0, seed=3))]
    expected = replayed(runner, Recorder(), rows)
    assert replayed(runner, refuse, rows) == expected
    assert caplog.text.count("not permitted") == 2  # once for the steps, once for the choice of tokens


def replayed(runner: Runner, record: Record, rows: list[Row]) -> list[Sample]:
    runner.allocate(8)
    runner.record(list(SIZES), WIDTH, record)
    return runner.step(rows)


@pytest.mark.parametrize(
    ("seats", "sizes"),
    [(1, [1]), (3, [1, 2, 4]), (5, [1, 2, 4, 8]), (20, [1, 2, 4, 8, 16, 24]), (1000, [1, 2, 4, *range(8, 257, 8)])],
)
def test_sizes_reach_up_to_the_first_that_holds_every_seat(seats: int, sizes: list[int]) -> None:
    assert graph_sizes(seats) == sizes
