"""What goes wrong inside a step, in the real loop and runner: one request fails and the others go on."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

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
BLOCK = 16
BUDGET = 64
SAMPLING = Sampling(max_tokens=6, temperature=0.0, ignore_eos=True)
SHORT, LONG = [5, 6, 7], list(range(1, 61))


class SmallGpu(Runner):
    """A runner whose device has no memory for steps of more than `most` tokens."""

    most = BUDGET

    def forward(self, packed: array[int] | bytearray) -> Tensor:
        tokens = packed[1]
        if tokens > self.most:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {tokens} tokens")
        return super().forward(packed)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tmp_path_factory.mktemp("llama")
    checkpoints.save("llama", folder)
    spec, ops = read_model_spec(folder), choose(CPU, torch.float32)
    return load_decoder(spec, Checkpoint(folder), ops, device=CPU, dtype=torch.float32, max_model_len=256)


@pytest.fixture
def loop(model: Decoder, tmp_path: Path) -> Iterator[EngineLoop]:
    runner = SmallGpu(model, device=CPU, dtype=torch.float32, block_size=BLOCK)
    runner.allocate(64)
    scheduler = Scheduler(BlockPool(64, BLOCK), max_model_len=256, max_num_seqs=8, max_batched_tokens=BUDGET)
    grammars = Grammars(tmp_path, model.spec.vocab_size, model.spec.eos_token_ids)
    yield EngineLoop(scheduler, runner, ServerLink(tmp_path, "r"), Watchdog(60.0), grammars, GpuWatch())
    scheduler.check()
    assert scheduler.pool.usage == 0.0


def small_gpu(loop: EngineLoop) -> SmallGpu:
    assert isinstance(loop.runner, SmallGpu)
    return loop.runner


def run(loop: EngineLoop, requests: dict[str, list[int]]) -> dict[str, list[Output]]:
    """All outputs of `requests`, submitted together."""
    for name, prompt in requests.items():
        loop.scheduler.add(Sequence(name, prompt, SAMPLING))
    found: dict[str, list[Output]] = {name: [] for name in requests}
    while loop.scheduler.has_work:
        for output in loop.step():
            found[output.id].append(output)
    return found


def tokens(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.tokens]


def test_out_of_memory_in_a_prompt_fails_that_request_and_halves_the_steps(loop: EngineLoop) -> None:
    alone = tokens(run(loop, {"alone": SHORT})["alone"])
    small_gpu(loop).most = 40
    found = run(loop, {"short": SHORT, "long": LONG})
    assert found["long"][-1].finish == "error"
    assert "no memory left" in (found["long"][-1].error or "")
    assert tokens(found["short"]) == alone
    assert loop.scheduler.max_batched_tokens == BUDGET // 2


def test_after_it_the_same_prompt_is_served_in_smaller_steps(loop: EngineLoop) -> None:
    expected = tokens(run(loop, {"before": LONG})["before"])
    small_gpu(loop).most = 40
    run(loop, {"first": list(reversed(LONG))})
    assert tokens(run(loop, {"again": LONG})["again"]) == expected


def test_the_second_time_it_ends_the_engine(loop: EngineLoop) -> None:
    small_gpu(loop).most = 10
    run(loop, {"first": LONG})
    with pytest.raises(torch.OutOfMemoryError):
        run(loop, {"second": LONG})
    loop.scheduler.abort_all()


def test_in_a_decode_it_ends_the_engine_at_once(loop: EngineLoop) -> None:
    loop.scheduler.add(Sequence("a", SHORT, SAMPLING))
    loop.step()
    small_gpu(loop).most = 0
    with pytest.raises(torch.OutOfMemoryError):
        loop.step()
    loop.scheduler.abort_all()


def test_an_output_that_is_not_a_number_fails_its_request_only(
    loop: EngineLoop, model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = tokens(run(loop, {"alone": SHORT})["alone"])
    poison, embed = 9, model.embed
    broken = lambda ids: embed(ids).masked_fill((ids == poison)[:, None], torch.nan)  # noqa: E731
    monkeypatch.setattr(model, "embed", broken)
    found = run(loop, {"good": SHORT, "bad": [*SHORT, poison], "good too": SHORT})
    assert [output.finish for output in found["bad"]] == ["error"]
    assert "not a number" in (found["bad"][0].error or "")
    assert tokens(found["good"]) == tokens(found["good too"]) == alone


def test_what_an_output_that_is_not_a_number_left_in_the_cache_is_not_used_again(
    loop: EngineLoop, model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = model.embed
    with monkeypatch.context() as patch:
        patch.setattr(model, "embed", lambda ids: embed(ids) * torch.nan)
        (output,) = run(loop, {"bad": LONG})["bad"]
        assert output.finish == "error"
    again = run(loop, {"again": LONG})["again"]
    assert again[0].cached_tokens == 0
    assert again[-1].finish != "error"


def test_the_first_output_tells_how_long_the_request_waited(loop: EngineLoop) -> None:
    loop.scheduler.max_num_seqs = 1
    found = run(loop, {"first": SHORT, "second": SHORT})
    assert found["first"][0].queued_s >= 0
    assert all(output.queued_s == 0.0 for output in found["second"][1:])
