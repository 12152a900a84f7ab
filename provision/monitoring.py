"""Prometheus' configuration for deployments: what it scrapes, and the rules by which it alerts. Pure.

The documents follow Prometheus' own schema (tests hold them against `promtool`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

JOB = "deployctl"
SCRAPE_S = 15
RULES_FILE = "rules.yml"
CONFIG_FILE = "prometheus.yml"
TTL_WARNING_S = 1800
TTFT_P95_S = 5.0
ERROR_SHARE = 0.05
KV_FULL = 0.95


@dataclass(frozen=True, slots=True)
class Watched:
    """One deployment to watch. `certificate` is the PEM to pin, None = the system's authorities or no TLS.

    `expires_at`: seconds since the epoch when the cloud deletes the machine, None = never.
    """

    name: str
    base_url: str  # ends in /v1
    api_key: str
    certificate: str | None = None
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on an alert fires. `ttft_p95_s`: seconds."""

    ttft_p95_s: float = TTFT_P95_S


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file of the configuration folder; a secret one is for its owner alone."""

    name: str
    text: str
    secret: bool = False


def config_files(watched: Sequence[Watched], thresholds: Thresholds, folder: Path) -> list[ConfigFile]:
    """Everything that Prometheus reads, to be written into `folder`. Keys stand in files of their own (mode 0600)."""
    jobs = [_scrape(item, folder) for item in watched]
    config = {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
        "rule_files": [RULES_FILE],
        "scrape_configs": jobs,
    }
    rules = {"groups": [{"name": JOB, "rules": alert_rules(watched, thresholds)}]}
    files = [ConfigFile(CONFIG_FILE, _yaml(config)), ConfigFile(RULES_FILE, _yaml(rules))]
    for item in watched:
        files.append(ConfigFile(f"{item.name}.key", item.api_key, secret=True))
        if item.certificate is not None:
            files.append(ConfigFile(f"{item.name}.pem", item.certificate))
    return files


def alert_rules(watched: Sequence[Watched], thresholds: Thresholds) -> list[dict[str, Any]]:
    """Alerts for every deployment, and one for each that has an end."""
    errors = 'sum by (deployment) (rate(deployctl_requests_refused_total{status=~"5.."}[5m]))'
    failed = 'sum by (deployment) (rate(deployctl_request_success_total{finished_reason="error"}[5m]))'
    # `or` on the sum: a deployment whose counters have no such label yet counts as zero.
    ended = "sum by (deployment) (rate(deployctl_request_success_total[5m]))"
    bad = f"(({errors}) or {ended} * 0) + (({failed}) or {ended} * 0)"
    ttft = "histogram_quantile(0.95, sum by (deployment, le) (rate(deployctl_time_to_first_token_seconds_bucket[5m])))"
    rules = [
        _rule("EndpointDown", f'up{{job=~"{JOB}-.*"}} == 0', "1m", "critical", "does not answer", "status"),
        _rule("EndpointNotReady", "deployctl_ready == 0", "5m", "critical", "takes no requests", "status"),
        _rule(
            "ErrorRate",
            f"{bad} > {ERROR_SHARE} * ({ended} + (({errors}) or {ended} * 0)) > 0",
            "5m",
            "warning",
            f"fails more than {ERROR_SHARE:.0%} of its requests",
            "logs",
        ),
        _rule(
            "SlowFirstToken",
            f"{ttft} > {thresholds.ttft_p95_s:g}",
            "5m",
            "warning",
            f"takes over {thresholds.ttft_p95_s:g} s to the first token (95th percentile)",
            "bench",
        ),
        _rule(
            "KvCacheFull",
            f"deployctl_kv_cache_usage_perc > {KV_FULL} and deployctl_num_requests_waiting > 0",
            "5m",
            "warning",
            "has no KV cache left and requests wait",
            "plan",
        ),
    ]
    for item in watched:
        if item.expires_at is not None:
            rules.append(
                _rule(
                    "EndIsNear",
                    # The series gives the alert its deployment, and says nothing of a machine that is gone.
                    f'(up{{job="{_job(item)}"}} >= 0) and on () (vector(time()) > {item.expires_at - TTL_WARNING_S})',
                    "0s",
                    "warning",
                    f"is deleted by the cloud in under {TTL_WARNING_S // 60} minutes",
                    "extend",
                )
            )
    return rules


def prometheus_argv(program: str, folder: Path, data: Path, port: int) -> list[str]:
    """Prometheus in the foreground, on this machine's own address only; its configuration can be reloaded."""
    return [
        program,
        f"--config.file={folder / CONFIG_FILE}",
        f"--storage.tsdb.path={data}",
        "--storage.tsdb.retention.time=15d",
        f"--web.listen-address=127.0.0.1:{port}",
        "--web.enable-lifecycle",
        "--log.level=warn",
    ]


def _scrape(item: Watched, folder: Path) -> dict[str, Any]:
    url = urlsplit(item.base_url)
    port = url.port or (443 if url.scheme == "https" else 80)
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    job: dict[str, Any] = {
        "job_name": _job(item),
        "scheme": url.scheme,
        "metrics_path": "/metrics",
        "authorization": {"credentials_file": str(folder / f"{item.name}.key")},
        "static_configs": [{"targets": [f"{host}:{port}"], "labels": {"deployment": item.name}}],
    }
    if item.certificate is not None:
        job["tls_config"] = {"ca_file": str(folder / f"{item.name}.pem")}
    return job


def _job(item: Watched) -> str:
    return f"{JOB}-{item.name}"


def _rule(name: str, expression: str, lasting: str, severity: str, what: str, command: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        "for": lasting,
        "labels": {"severity": severity},
        "annotations": {
            "summary": f"{{{{ $labels.deployment }}}} {what}",
            "next": f"deployctl {command} {{{{ $labels.deployment }}}}",
        },
    }


def _yaml(document: dict[str, Any]) -> str:
    # Through JSON: no anchors for what stands in it twice.
    return yaml.safe_dump(json.loads(json.dumps(document)), sort_keys=False, width=200)
