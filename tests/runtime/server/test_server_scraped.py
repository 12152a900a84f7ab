"""A real Prometheus reads the real server's counters, with the configuration of `deployctl monitor`."""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_double import poll
from server_process import KEY, Server

from provision.cli.monitor import write_files
from provision.monitoring import Thresholds, Watched, config_files, prometheus_argv
from runtime.agent.files import PRIVATE
from runtime.agent.identity import Keeper

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None and os.environ.get("CI") != "true",
    reason="prometheus is not on PATH: `apt-get install prometheus`",
)


@pytest.fixture(scope="module")
def tls_server(make_server: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    keeper = Keeper(tmp_path_factory.mktemp("tls"), PRIVATE)
    keeper.ensure_pinned("i-1", ("127.0.0.1",), datetime.now(UTC))
    server = make_server()
    server.tls = keeper.certificate_file.parent
    server.engine.start()
    server.launch()
    return server


@pytest.fixture(scope="module")
def prometheus(
    shared_server: Server, tls_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """Watches three deployments: one plain, one behind a pinned certificate, one with a wrong key."""
    folder = tmp_path_factory.mktemp("prometheus")
    certificate = tls_server.tls / "certificate.pem" if tls_server.tls else Path()
    watched = [
        Watched("plain", f"{shared_server.url}/v1", KEY),
        Watched("pinned", f"{tls_server.url}/v1", KEY, certificate.read_text()),
        Watched("stranger", f"{shared_server.url}/v1", "sk-wrong"),
    ]
    write_files(config_files(watched, Thresholds(), folder), folder)
    config = folder / "prometheus.yml"
    config.write_text(config.read_text().replace("15s", "1s"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(prometheus_argv("prometheus", folder, folder / "data", port), stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            poll(lambda: is_ready(client), "Prometheus is ready")
            yield client
    finally:
        running.terminate()
        running.wait(30)


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.HTTPError:
        return False


def value_of(client: httpx.Client, expression: str) -> float | None:
    answer: Any = client.get("/api/v1/query", params={"query": expression}).json()
    found = answer["data"]["result"]
    return float(found[0]["value"][1]) if found else None


def has_value(client: httpx.Client, expression: str) -> bool:
    return value_of(client, expression) is not None


@pytest.mark.parametrize(("deployment", "up"), [("plain", 1), ("pinned", 1), ("stranger", 0)])
def test_it_gets_in_with_the_key_and_under_the_pinned_certificate_only(
    prometheus: httpx.Client, deployment: str, up: int
) -> None:
    poll(lambda: value_of(prometheus, f'up{{deployment="{deployment}"}}') == up, f"{deployment} has up = {up}")


def test_every_series_that_an_alert_reads_is_one_that_the_server_has(
    prometheus: httpx.Client, shared_server: Server
) -> None:
    with shared_server.http() as client:
        client.post("/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 1})
        client.post("/v1/completions", json={"model": "tiny", "prompt": "a", "nonsense": 1})
    for name in (
        "deployctl_ready",
        "deployctl_kv_cache_usage_perc",
        "deployctl_num_requests_waiting",
        "deployctl_time_to_first_token_seconds_bucket",
        'deployctl_request_success_total{finished_reason="error"}',
        "deployctl_requests_refused_total",
    ):
        poll(functools.partial(has_value, prometheus, name), f"{name} is there")
