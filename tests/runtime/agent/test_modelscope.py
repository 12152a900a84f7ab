"""Weights from ModelScope: its own client, in our worker, against a small hub on loopback."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from agent_machine import ROOT, wait_for

from runtime.agent.modelscope import ModelScopeDownload, ModelScopeJob, explain
from runtime.agent.status import Progress
from runtime.agent.weights import Caches, prepare_weights
from runtime.agent.worker import WorkerLine
from runtime.deployment import ModelSource, Weights
from tests.lab.small_modelscope import REPO, ModelScopeHub

BIG = "model.safetensors"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    BIG: random.Random(6).randbytes(6_000_000),
    "configuration.json": b"{}",
    "README.md": b"words",
    "modeling.py": b"code",
}
WANTED = {"config.json", "tokenizer.json", "configuration.json", BIG}


def nothing(_: Progress) -> None:
    """A report that nobody reads."""


@pytest.fixture
def hub() -> Iterator[ModelScopeHub]:
    with ModelScopeHub(dict(FILES)) as hub:
        yield hub


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Caches:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "a-login-of-the-user")
    monkeypatch.setenv("MODELSCOPE_API_MAX_RETRIES", "1")
    return Caches(tmp_path / "models", tmp_path / "hub")


def from_hub(
    hub: ModelScopeHub,
    caches: Caches,
    report: Callable[[Progress], None] = nothing,
    *,
    token: str | None = None,
    stall_s: float = 60.0,
) -> Weights:
    model = ModelSource(source=f"modelscope:{REPO}", served_name="tiny", hub_endpoint=hub.endpoint)
    return prepare_weights(model, caches, report, token=token, stall_s=stall_s)


def a_job(hub: ModelScopeHub, caches: Caches, repo: str = REPO, revision: str = "master") -> ModelScopeJob:
    folder = caches.models / "modelscope-x"
    return ModelScopeJob(
        repo=repo, revision=revision, folder=str(folder), record=f"{folder}.json", endpoint=hub.endpoint
    )


def refusal(job: ModelScopeJob) -> WorkerLine:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any; `explain` tells them apart
        ModelScopeDownload(job).run()
    return explain(caught.value, job)


def test_what_serving_needs_arrives_verified_and_no_login_travels(hub: ModelScopeHub, caches: Caches) -> None:
    weights = from_hub(hub, caches)
    assert {path.name for path in Path(weights.path).iterdir()} == WANTED
    assert all((Path(weights.path) / name).read_bytes() == FILES[name] for name in WANTED)
    assert hub.tokens == set()


def test_the_token_that_was_given_is_used(hub: ModelScopeHub, caches: Caches) -> None:
    hub.needs_token = "ms-token"
    assert from_hub(hub, caches, token="ms-token").revision
    assert hub.tokens == {"ms-token"}


@pytest.mark.slow
def test_a_second_deployment_fetches_nothing_and_needs_no_network(hub: ModelScopeHub, caches: Caches) -> None:
    first = from_hub(hub, caches)
    served = dict(hub.served)
    assert from_hub(hub, caches) == first
    assert hub.served == served
    hub.__exit__()
    try:
        assert from_hub(hub, caches) == first
    finally:
        hub.__enter__()


def test_a_commit_is_the_revision_and_a_branch_is_known_by_its_files(hub: ModelScopeHub, caches: Caches) -> None:
    commit = "c0ffee" + "0" * 34
    hub.revisions = ("master", commit)
    assert ModelScopeDownload(a_job(hub, caches, revision=commit)).run().revision == commit
    branch = ModelScopeDownload(a_job(hub, caches)).run().revision
    hub.files[BIG] = b"a newer one"
    assert ModelScopeDownload(a_job(hub, caches)).run().revision != branch


def test_a_killed_worker_is_taken_up_where_its_file_ends(hub: ModelScopeHub, caches: Caches) -> None:
    hub.bytes_per_s = 4_000_000
    job = a_job(hub, caches)
    argv = [sys.executable, "-m", "runtime.agent.modelscope"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=ROOT)
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(job))
    process.stdin.close()

    def partial() -> int:
        found = list(Path(job.folder).glob(f"*/{BIG}.incomplete"))
        return found[0].stat().st_size if found else 0

    wait_for(lambda: partial() > 1_500_000, "a part of the file")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    here = partial()
    hub.bytes_per_s = None
    wait_for(lambda: bool(hub.served[BIG]), "the cut connection is noticed")
    assert ModelScopeDownload(job).run().path is not None
    assert hub.served[BIG][1:] == [(here, len(FILES[BIG]))]


def test_a_download_that_stands_still_is_given_up_and_tried_again(hub: ModelScopeHub, caches: Caches) -> None:
    hub.frozen = True

    def thaw(progress: Progress) -> None:
        if (progress.bytes or 0) > 2_000_000:
            hub.frozen = False

    assert from_hub(hub, caches, thaw, stall_s=3.0).revision


def test_a_damaged_file_is_never_used(hub: ModelScopeHub, caches: Caches) -> None:
    hub.damaged.add("config.json")
    job = a_job(hub, caches)
    line = refusal(job)
    assert "arrives different from what the hub lists" in (line.error or "")
    assert not list(Path(job.folder).glob("*/config.json"))


def test_a_missing_repository_or_revision_is_named(hub: ModelScopeHub, caches: Caches) -> None:
    assert "acme/other or its revision" in (refusal(a_job(hub, caches, repo="acme/other")).error or "")
    assert "'v9'" in (refusal(a_job(hub, caches, revision="v9")).error or "")


def test_only_pickle_weights_are_refused(hub: ModelScopeHub, caches: Caches) -> None:
    del hub.files[BIG]
    assert refusal(a_job(hub, caches)).error == "the repository has no *.safetensors file"
