"""What only runs on a GPU, on one that is played on the CPU (tests.lab.pretended_gpu): loading, sizing, CUDA graphs and
steps that run ahead. On a real one, test_gpu.py says the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from runtime.deployment import Deployment, EngineOptions
from runtime.engine.load import Release, load_runner
from runtime.engine.main import size_engine
from runtime.engine.runner import Runner
from runtime.engine.scheduler import Row
from runtime.ipc import Sampling
from runtime.model.checkpoint import read_model_spec
from runtime.model.group import Group
from runtime.ops import triton_attention
from runtime.ops.sampling import Drawn
from tests.lab import checkpoints
from tests.lab.offline import Served, serve
from tests.lab.pretended_gpu import pretended_gpu

NEW_TOKENS = 3
PROMPTS = [[(7 * i + 3 * n) % checkpoints.VOCAB for i in range(n)] for n in (2, 6)]
GREEDY = Sampling(NEW_TOKENS, temperature=0, ignore_eos=True)
EVERY_WAY = [
    GREEDY,
    Sampling(NEW_TOKENS, temperature=0.9, top_k=5, seed=3, ignore_eos=True),
    Sampling(NEW_TOKENS, temperature=0.7, top_p=0.9, min_p=0.01, seed=4, presence_penalty=0.5, repetition_penalty=1.1),
    Sampling(NEW_TOKENS, logprobs=2, logit_bias=((3, 1.0),), min_tokens=2, frequency_penalty=0.1),
]
FAST = "qwen3"
NAMES = [name if name == FAST else pytest.param(name, marks=pytest.mark.slow) for name in checkpoints.CONFIGS]


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_attention, "PROGRAMS", 1)


def options(**changes: Any) -> EngineOptions:
    return EngineOptions(**{
        "dtype": "float32", "device": "cuda", "max_model_len": 32, "max_num_seqs": 2, "block_size": 4, **changes
    })  # fmt: skip


def load(folder: Path, wanted: EngineOptions | None = None) -> Runner:
    """As the engine does it; only what it reads of a release folder is given."""
    parts = SimpleNamespace(
        options=wanted or options(), weights=SimpleNamespace(path=str(folder)), spec=read_model_spec(folder)
    )
    return load_runner(cast(Release, parts), Group(), lambda share: None)


def run(runner: Runner, requests: list[tuple[list[int], Sampling]], *, ahead: bool) -> Served:
    """`ahead`: as the engine does it on a GPU, with decodes recorded and each step launched before the last is read."""
    sizes = [1, 2] if ahead else []
    return serve(runner, requests, blocks=40, budget=5, seats=2, max_model_len=32, overlap=ahead, recorded=sizes)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_recorded_steps_that_run_ahead_give_the_tokens_of_transformers(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reference = checkpoints.save(name, tmp_path)
    expected = [checkpoints.greedy(reference, prompt, NEW_TOKENS) for prompt in PROMPTS]
    with pretended_gpu() as gpu:
        runner = load(tmp_path)
        assert run(runner, [(prompt, GREEDY) for prompt in PROMPTS], ahead=True).tokens == expected
        assert gpu.replays > 0
    assert "no CUDA graphs" not in caplog.text


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        (FAST, None),
        pytest.param("qwen3-moe", None, marks=pytest.mark.slow),
        pytest.param(FAST, "fp8", marks=pytest.mark.slow),
        pytest.param("qwen3-moe", "fp8", marks=pytest.mark.slow),
    ],
)
def test_no_launch_waits_for_the_device_whatever_a_request_asks_for(
    name: str, quantization: str | None, tmp_path: Path
) -> None:
    checkpoints.save(name, tmp_path)
    requests = [([1, 2, 3], way) for way in EVERY_WAY]
    with pretended_gpu() as gpu:
        runner = load(tmp_path, options(quantization=quantization))
        expected = run(runner, requests, ahead=False).samples
        launch = runner.launch

        def watched(rows: list[Row], allowed: Mapping[str, Tensor] | None = None) -> Drawn:
            every_token = torch.ones(checkpoints.VOCAB, dtype=torch.bool)
            with gpu.watched():  # also with a grammar's mask, which here leaves everything
                masks = {row.seq.id: every_token for row in rows if row.seq.sampling.top_k}
                return launch(rows, masks)

        runner.launch = watched  # type: ignore[method-assign]
        assert run(runner, requests, ahead=True).samples == expected


@pytest.mark.timeout(300)
def test_the_engine_sizes_itself(tmp_path: Path) -> None:
    checkpoints.save(FAST, tmp_path)
    with pretended_gpu(total=1 << 30) as gpu:
        wanted = options(max_batched_tokens=4, max_num_seqs=1)
        runner = load(tmp_path, wanted)
        scheduler, step_s = size_engine(runner, cast(Deployment, SimpleNamespace(engine=wanted, predicted=None)))
        assert scheduler.pool.capacity == 32 // 4  # more is of no use
        assert step_s > 0
        assert runner.graphs is not None
        assert runner.graphs.sizes == [1]
        assert gpu.waits
