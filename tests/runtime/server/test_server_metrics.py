"""What /metrics says: the names that dashboards read, and what is unknown is absent."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from engine_double import poll
from prometheus_client.parser import text_string_to_metric_families
from server_process import MODEL, Server

from runtime.ipc import Gpus, GpuUse

# vLLM's names, as its dashboards ask for them.
DASHBOARD = (
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "num_preemptions",
    "prompt_tokens",
    "generation_tokens",
    "request_success",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
)
GIB = 2**30

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(client: httpx.Client) -> Samples:
    """Every value by (name, labels other than the model's)."""
    text = client.get("/metrics").text
    return {
        (sample.name, tuple(sorted((k, v) for k, v in sample.labels.items() if k != "model_name"))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("prefix", ["vllm:", "deployctl_"])
def test_the_names_of_the_dashboards_are_there(client: httpx.Client, prefix: str) -> None:
    found = {family.name for family in text_string_to_metric_families(client.get("/metrics").text)}
    assert {prefix + name for name in DASHBOARD} <= found


def test_a_request_is_counted_once_by_how_it_ended(client: httpx.Client, reply: Callable[[str], list[int]]) -> None:
    reply("a b c")
    names = [("deployctl_request_success_total", (("finished_reason", reason),)) for reason in ("stop", "length")]
    before = samples(client)
    client.post("/v1/completions", json={"model": MODEL, "prompt": "the"})
    client.post("/v1/completions", json={"model": MODEL, "prompt": "the", "max_tokens": 1})
    after = samples(client)
    assert [after[name] - before[name] for name in names] == [1, 1]


@pytest.mark.parametrize(
    "name",
    ["time_to_first_token", "request_queue_time", "request_prefill_time", "request_decode_time", "e2e_request_latency"],
)
def test_each_part_of_a_requests_time_is_observed_once(
    client: httpx.Client, reply: Callable[[str], list[int]], name: str
) -> None:
    reply("a b c")
    count = (f"deployctl_{name}_seconds_count", ())
    before = samples(client)[count]
    client.post("/v1/completions", json={"model": MODEL, "prompt": "the"})
    assert samples(client)[count] - before == 1


def test_the_time_since_the_last_request_starts_anew_with_each(
    client: httpx.Client, reply: Callable[[str], list[int]]
) -> None:
    reply("a")
    idle = ("deployctl_seconds_since_last_request", ())
    poll(lambda: samples(client)[idle] > 0.2, "the server is idle")
    client.post("/v1/completions", json={"model": MODEL, "prompt": "the"})
    assert samples(client)[idle] < 0.2


def test_without_a_gpu_there_are_no_gauges_of_gpus(client: httpx.Client) -> None:
    assert not [name for name, _ in samples(client) if "gpu" in name]


def test_gpus_have_memory_and_utilization_where_the_driver_tells(server: Server, client: httpx.Client) -> None:
    server.engine.send(Gpus((GpuUse(0, "NVIDIA A10", 3 * GIB, 24 * GIB, 0.5), GpuUse(1, "MIG", GIB, 24 * GIB))))
    first = (("gpu", "0"), ("name", "NVIDIA A10"))
    poll(lambda: ("deployctl_gpu_utilization", first) in samples(client), "the reading arrives")
    found = samples(client)
    assert found[("deployctl_gpu_utilization", first)] == 0.5
    assert found[("deployctl_gpu_memory_used_bytes", first)] == 3 * GIB
    assert found[("deployctl_gpu_memory_total_bytes", first)] == 24 * GIB
    second = (("gpu", "1"), ("name", "MIG"))
    assert found[("deployctl_gpu_memory_used_bytes", second)] == GIB
    assert ("deployctl_gpu_utilization", second) not in found
    server.engine.send(Gpus(()))


def test_every_series_has_one_type_and_every_histogram_its_buckets(client: httpx.Client) -> None:
    families = list(text_string_to_metric_families(client.get("/metrics").text))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        if family.type == "histogram":
            assert any(sample.labels.get("le") == "+Inf" for sample in family.samples), family.name
