"""A real server and a real engine: whatever clients do, nothing of it stays when they are gone."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
import pytest
from engine_double import DEADLINE_S, ScriptedEngine, poll
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from server_process import KEY, MODEL, RELEASE, Server

from tests.chaos.machine import write_model
from tests.runtime.engine.engine_process import start

GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "open_requests")


@dataclass(frozen=True)
class Visit:
    """One request, and how its client goes: with the answer, after some chunks, or when it has waited long enough."""

    ends: Literal["answered", "leaves a stream", "times out"]
    prompts: int
    n: int
    max_tokens: int
    chunks: int


VISITS = st.builds(
    Visit,
    ends=st.sampled_from(["answered", "leaves a stream", "times out"]),
    prompts=st.integers(1, 3),
    n=st.integers(1, 3),
    max_tokens=st.integers(1, 60),
    chunks=st.integers(0, 5),
)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with an engine process of four seats behind it."""
    root = Path(tempfile.mkdtemp(prefix="srv-"))  # a short path: a socket's address has 107 bytes
    (root / "run").mkdir(mode=0o700)
    server = Server(
        root, ScriptedEngine(root / "run", RELEASE, 0, 0)
    )  # the double is not started: only its path counts
    server.write_keys(KEY)
    server.write_weights(write_model(tmp_path_factory.mktemp("noise") / "model"))
    server.launch()
    engine = start(server.release, root / "run")
    server.wait_healthy()
    yield server
    server.stop()
    engine.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        engine.communicate(timeout=DEADLINE_S)
    shutil.rmtree(root)


def make(server: Server, visit: Visit) -> None:
    body = {
        "model": MODEL,
        "prompt": ["the quick brown fox " * 3] * visit.prompts,
        "n": visit.n,
        "max_tokens": visit.max_tokens,
        "ignore_eos": True,
        "stream": visit.ends == "leaves a stream",
    }
    read_s = 0.05 if visit.ends == "times out" else DEADLINE_S
    timeout = httpx.Timeout(DEADLINE_S, read=read_s)
    with server.http() as client, contextlib.suppress(httpx.ReadTimeout):
        if visit.ends != "leaves a stream":
            assert client.post("/v1/completions", json=body, timeout=timeout).status_code == 200
            return
        with client.stream("POST", "/v1/completions", json=body, timeout=timeout) as stream:
            chunks = stream.iter_lines()
            for _ in range(visit.chunks):
                next(chunks, None)


def gauges(server: Server) -> dict[str, float]:
    with server.http() as client:
        families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        name: sample.value
        for family in families
        for sample in family.samples
        for name in GAUGES
        if sample.name == f"deployctl_{name}"
    }


@pytest.mark.slow
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(visits=st.lists(VISITS, min_size=4, max_size=12))
def test_whatever_clients_do_every_gauge_reads_0_when_nobody_asks(live: Server, visits: list[Visit]) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda visit: make(live, visit), visits))
    poll(lambda: gauges(live) == dict.fromkeys(GAUGES, 0.0), f"all gauges read 0, not {gauges(live)}")
