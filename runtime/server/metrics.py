"""Counters and histograms, shown under our own prefix and under the names that vLLM dashboards use.

The hot path adds to plain numbers; Prometheus objects are made when somebody asks for `/metrics`.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import (
    CollectorRegistry,
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest

from runtime.ipc import GpuUse, Stats
from runtime.server.rates import Account

# Upper bounds in seconds, from one GPU step to a long answer on a CPU.
_FIRST_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
_BETWEEN = (
    0.002,
    0.005,
    0.01,
    0.015,
    0.02,
    0.03,
    0.04,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1,
    2.5,
    5,
)
_WHOLE = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 20, 30, 40, 60, 120, 240, 480, 960)
_PREFIXES = ("deployctl_", "vllm:")


class Histogram:
    """Counts per bucket; the last bucket has no upper bound."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, how many values are at most that), as Prometheus wants them."""
        total = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            rows.append((bound, float(total)))
        return rows

    @property
    def sum(self) -> float:
        return self._sum


class Metrics:
    """What the server has seen since its start. Durations in seconds."""

    def __init__(self, model: str) -> None:
        self._model = model
        self.time_to_first_token = Histogram(_FIRST_TOKEN)
        self.inter_token = Histogram(_BETWEEN)
        self.end_to_end = Histogram(_WHOLE)
        self.decode_time = Histogram(_WHOLE)
        self.queue_time = Histogram(_WHOLE)
        self.prefill_time = Histogram(_WHOLE)
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.finished: Counter[str] = Counter({"stop": 0, "length": 0, "abort": 0, "error": 0})
        self.refused: Counter[str] = Counter()  # by HTTP status
        self.started_at = self.last_request_at = time.monotonic()

    def expose(
        self,
        stats: Stats | None,
        open_requests: int,
        serving: bool,
        accounts: Mapping[str, Account] | None = None,
        gpus: Sequence[GpuUse] = (),
    ) -> bytes:
        """The text that Prometheus reads. `stats` None: no engine, so its gauges are left out."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Snapshot(self, self._model, stats, open_requests, serving, accounts or {}, gpus))
        return generate_latest(registry)


class _Snapshot:
    """A Prometheus collector over one moment."""

    def __init__(
        self,
        metrics: Metrics,
        model: str,
        stats: Stats | None,
        open_requests: int,
        serving: bool,
        accounts: Mapping[str, Account],
        gpus: Sequence[GpuUse],
    ) -> None:
        self._metrics = metrics
        self._model = model
        self._stats = stats
        self._open_requests = open_requests
        self._serving = serving
        self._accounts = accounts
        self._gpus = gpus

    def collect(self) -> Iterator[Metric]:
        metrics = self._metrics
        for prefix in _PREFIXES:
            yield self._counter(prefix, "prompt_tokens", "Prompt tokens processed.", metrics.prompt_tokens)
            yield self._counter(prefix, "generation_tokens", "Tokens generated.", metrics.generation_tokens)
            success = CounterMetricFamily(
                f"{prefix}request_success",
                "Requests by how they ended.",
                labels=["model_name", "finished_reason"],
            )
            for reason, count in metrics.finished.items():
                success.add_metric([self._model, reason], count)
            yield success
            for name, text, histogram in (
                ("time_to_first_token_seconds", "Submission to first token.", metrics.time_to_first_token),
                ("inter_token_latency_seconds", "Between outputs of a request.", metrics.inter_token),
                ("e2e_request_latency_seconds", "Submission to last token.", metrics.end_to_end),
                ("request_queue_time_seconds", "Arrival to first step.", metrics.queue_time),
                ("request_prefill_time_seconds", "First step to first token.", metrics.prefill_time),
                ("request_decode_time_seconds", "First token to last token.", metrics.decode_time),
            ):
                family = HistogramMetricFamily(f"{prefix}{name}", text, labels=["model_name"])
                family.add_metric([self._model], histogram.buckets(), histogram.sum)
                yield family
            if self._stats is not None:
                yield from self._engine(prefix, self._stats)
        yield self._gauge("deployctl_", "ready", "1 when requests are taken.", float(self._serving))
        yield self._gauge("deployctl_", "open_requests", "Requests with the engine.", self._open_requests)
        uptime = time.monotonic() - metrics.started_at
        yield self._gauge("deployctl_", "uptime_seconds", "Since the server's start, and so of all counters.", uptime)
        idle = time.monotonic() - metrics.last_request_at
        yield self._gauge("deployctl_", "seconds_since_last_request", "Since a request came or ended.", idle)
        refused = CounterMetricFamily(
            "deployctl_requests_refused", "Requests refused, by HTTP status.", labels=["model_name", "status"]
        )
        for status, count in metrics.refused.items():
            refused.add_metric([self._model, status], count)
        yield refused
        yield from self._keys()
        yield from self._gpu_families()

    def _engine(self, prefix: str, stats: Stats) -> Iterator[Metric]:
        yield self._gauge(prefix, "num_requests_running", "Requests in the running batch.", stats.running)
        yield self._gauge(prefix, "num_requests_waiting", "Requests in the queue.", stats.waiting)
        yield self._gauge(prefix, "kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", stats.kv_usage)
        yield self._counter(prefix, "num_preemptions", "Requests preempted.", stats.preemptions)
        yield self._counter(prefix, "prefix_cache_queries", "Tokens looked up.", stats.prefix_queries)
        yield self._counter(prefix, "prefix_cache_hits", "Tokens found.", stats.prefix_hits)
        yield self._counter(prefix, "engine_steps", "Steps of the engine.", stats.steps)

    def _keys(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("deployctl_key_requests", "Requests of a key.", labels=["model_name", "key"])
        refused = CounterMetricFamily(
            "deployctl_key_requests_refused", "Requests over a key's limits.", labels=["model_name", "key"]
        )
        tokens = CounterMetricFamily(
            "deployctl_key_tokens", "Tokens of a key, by kind.", labels=["model_name", "key", "kind"]
        )
        for name, account in self._accounts.items():
            requests.add_metric([self._model, name], account.requests)
            refused.add_metric([self._model, name], account.refused)
            tokens.add_metric([self._model, name, "prompt"], account.prompt_tokens)
            tokens.add_metric([self._model, name, "completion"], account.completion_tokens)
        yield from (requests, refused, tokens)

    def _gpu_families(self) -> Iterator[Metric]:
        """A value that the driver does not tell is absent, not zero."""
        labels = ["model_name", "gpu", "name"]
        used = GaugeMetricFamily("deployctl_gpu_memory_used_bytes", "Of all processes.", labels=labels)
        total = GaugeMetricFamily("deployctl_gpu_memory_total_bytes", "Of the card.", labels=labels)
        busy = GaugeMetricFamily("deployctl_gpu_utilization", "Share of time with a kernel, 0 to 1.", labels=labels)
        for gpu in self._gpus:
            values = [self._model, str(gpu.index), gpu.name]
            used.add_metric(values, gpu.memory_used)
            total.add_metric(values, gpu.memory_total)
            if gpu.utilization is not None:
                busy.add_metric(values, gpu.utilization)
        yield from (family for family in (used, total, busy) if family.samples)

    def _gauge(self, prefix: str, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(prefix + name, text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _counter(self, prefix: str, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(prefix + name, text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family
