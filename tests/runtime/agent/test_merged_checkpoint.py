"""A merged fine-tuned checkpoint, from a folder or pushed into a bucket, is served like any other model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from agent_machine import ROOT
from transformers import PreTrainedModel

from provision.origins import FolderOrigin
from provision.weights_push import Push
from runtime.agent.weights import Caches, prepare_weights
from runtime.bucket import open_bucket
from runtime.deployment import ModelSource, encode
from runtime.engine.runner import Runner
from runtime.ipc import Sampling
from runtime.model.checkpoint import Checkpoint, read_model_spec
from runtime.model.decoder import load_decoder
from runtime.ops.ops import REFERENCE
from runtime.vm import Vm
from tests.lab import checkpoints
from tests.lab.object_store import OWNER, ObjectStore, vm_role
from tests.lab.offline import serve

REGION, BUCKET, PREFIX = "us-east-1", "some-weights", "tuned/mine"
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
NEW_TOKENS = 8


@dataclass(frozen=True)
class Tuned:
    folder: Path
    expected: list[int]
    of_base: list[int]


def merge(model: PreTrainedModel, rank: int = 4) -> None:
    """W ← W + BA in every query projection, as merging a LoRA adapter does."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("q_proj.weight"):
                weight += torch.randn(weight.shape[0], rank) @ torch.randn(rank, weight.shape[1]) * 0.5


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    folder = tmp_path_factory.mktemp("tuned") / "mine"
    model = checkpoints.save("qwen2", folder.with_name("base"))
    of_base = checkpoints.greedy(model, PROMPT, NEW_TOKENS)
    merge(model)
    model.save_pretrained(folder, max_shard_size="100KB")
    (folder / "tokenizer.json").write_text("{}")
    return Tuned(folder, checkpoints.greedy(model, PROMPT, NEW_TOKENS), of_base)


def served(folder: Path) -> list[int]:
    """What our engine generates from the files in `folder`."""
    cpu = torch.device("cpu")
    checkpoint = Checkpoint(folder)
    spec = read_model_spec(folder)
    model = load_decoder(spec, checkpoint, REFERENCE, device=cpu, dtype=torch.float32, max_model_len=64)
    runner = Runner(model, device=cpu, dtype=torch.float32, block_size=16)
    request = (PROMPT, Sampling(NEW_TOKENS, temperature=0, ignore_eos=True))
    return serve(runner, [request], blocks=8, budget=64, max_model_len=64).tokens[0]


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Caches:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return Caches(tmp_path / "models", tmp_path / "hub")


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with ObjectStore(REGION, (OWNER, vm_role((f"{PREFIX}/",)))) as store:
        store.create_bucket(BUCKET)
        store.create_bucket("a-mailbox")
        yield store


def test_from_a_folder(tuned: Tuned, caches: Caches) -> None:
    model = ModelSource(source=str(tuned.folder), served_name="mine")
    weights = prepare_weights(model, caches, lambda _: None)
    assert served(Path(weights.path)) == tuned.expected != tuned.of_base


@pytest.mark.slow
def test_pushed_into_a_bucket_and_fetched_with_the_machines_role(
    tuned: Tuned, caches: Caches, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as users_side:
        for name, value in OWNER.environment().items():
            users_side.setenv(name, value)
        bucket = open_bucket("aws", REGION, BUCKET, store.url(BUCKET))
        Push(FolderOrigin(tuned.folder), bucket, PREFIX, tmp_path / "files", lambda _: None).run()
    for name, value in vm_role().environment().items():
        monkeypatch.setenv(name, value)
    vm = Vm(name="demo", provider="aws", region=REGION, bucket="a-mailbox", endpoint=store.url("a-mailbox"))
    (tmp_path / "vm.json").write_bytes(encode(vm))
    model = ModelSource(source=f"s3://{BUCKET}/{PREFIX}", served_name="mine")
    weights = prepare_weights(model, caches, lambda _: None, vm_file=tmp_path / "vm.json")
    assert sorted(os.listdir(weights.path)) == sorted(file.name for file in FolderOrigin(tuned.folder).files)
    assert served(Path(weights.path)) == tuned.expected
