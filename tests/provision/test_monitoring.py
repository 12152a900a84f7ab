"""Prometheus' configuration: held against `promtool` and a real Prometheus from the distribution."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from provision.monitoring import RULES_FILE, ConfigFile, Thresholds, Watched, config_files, prometheus_argv

DEMO = Watched("demo", "http://127.0.0.1:8000/v1", "sk-secret")
CLOUD = Watched("prod", "https://203.0.113.7:8000/v1", "sk-other", "-----BEGIN CERTIFICATE-----\n", 2_000_000_000)

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None and os.environ.get("CI") != "true",
    reason="promtool is not on PATH: `apt-get install prometheus`",
)


def write(files: Sequence[ConfigFile], folder: Path) -> None:
    for file in files:
        (folder / file.name).write_text(file.text)


def promtool(*words: str) -> str:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_key_stands_in_a_secret_file_and_nowhere_else(tmp_path: Path) -> None:
    files = config_files([DEMO, CLOUD], Thresholds(), tmp_path)
    assert [file.name for file in files if file.secret] == ["demo.key", "prod.key"]
    assert all("sk-" not in file.text for file in files if not file.secret)


def test_a_pinned_certificate_is_the_only_authority(tmp_path: Path) -> None:
    config = yaml.safe_load(config_files([DEMO, CLOUD], Thresholds(), tmp_path)[0].text)
    plain, pinned = config["scrape_configs"]
    assert "tls_config" not in plain
    assert pinned["tls_config"] == {"ca_file": str(tmp_path / "prod.pem")}
    assert (pinned["scheme"], pinned["static_configs"][0]["targets"]) == ("https", ["203.0.113.7:8000"])


def test_prometheus_listens_on_this_machine_only() -> None:
    argv = prometheus_argv("prometheus", Path("/c"), Path("/d"), 9090)
    assert "--web.listen-address=127.0.0.1:9090" in argv


@needs_promtool
def test_prometheus_accepts_the_configuration(tmp_path: Path) -> None:
    write(config_files([DEMO, CLOUD], Thresholds(), tmp_path), tmp_path)
    assert "SUCCESS" in promtool("check", "config", str(tmp_path / "prometheus.yml"))


def series(name: str, values: str, labels: str = "") -> dict[str, str]:
    return {"series": f'{name}{{deployment="demo",job="deployctl-demo"{labels}}}', "values": values}


BUCKET = "deployctl_time_to_first_token_seconds_bucket"
ENDED = "deployctl_request_success_total"
CASES = {
    "EndpointDown": [series("up", "0x20")],
    "EndpointNotReady": [series("deployctl_ready", "0x20")],
    "ErrorRate": [
        series(ENDED, "0+60x20", ',finished_reason="stop"'),
        series("deployctl_requests_refused_total", "0+10x20", ',status="503"'),
    ],
    "SlowFirstToken": [
        series(BUCKET, "0+0x20", ',le="5"'),
        series(BUCKET, "0+60x20", ',le="10"'),
        series(BUCKET, "0+60x20", ',le="+Inf"'),
    ],
    "KvCacheFull": [
        series("deployctl_kv_cache_usage_perc", "0.99x20"),
        series("deployctl_num_requests_waiting", "3x20"),
    ],
    "EndIsNear": [series("up", "1x20")],
}
CALM = [
    series("up", "1x20"),
    series("deployctl_ready", "1x20"),
    series(ENDED, "0+60x20", ',finished_reason="stop"'),
    series(ENDED, "0+1x20", ',finished_reason="error"'),
    series("deployctl_requests_refused_total", "0+30x20", ',status="429"'),
    series(BUCKET, "0+60x20", ',le="5"'),
    series(BUCKET, "0+60x20", ',le="+Inf"'),
    series("deployctl_kv_cache_usage_perc", "0.99x20"),
    series("deployctl_num_requests_waiting", "0x20"),
]


def firing(folder: Path, expires_at: int | None, input_series: list[dict[str, str]], expected: set[str]) -> None:
    """Fails unless exactly `expected` alerts fire for `demo` after 15 minutes; promtool's clock starts at 0."""
    demo = Watched("demo", DEMO.base_url, DEMO.api_key, None, expires_at)
    write(config_files([demo], Thresholds(), folder), folder)
    groups = yaml.safe_load((folder / RULES_FILE).read_text())["groups"]
    checks = []
    for rule in groups[0]["rules"]:
        name = rule["alert"]
        labels = {"deployment": "demo", "severity": rule["labels"]["severity"]}
        if name in ("EndpointDown", "EndpointNotReady", "KvCacheFull", "EndIsNear"):
            labels["job"] = "deployctl-demo"
        said = {key: text.replace("{{ $labels.deployment }}", "demo") for key, text in rule["annotations"].items()}
        alerts = [{"exp_labels": labels, "exp_annotations": said}] if name in expected else []
        checks.append({"eval_time": "15m", "alertname": name, "exp_alerts": alerts})
    test = {"interval": "1m", "input_series": input_series, "alert_rule_test": checks}
    document = {"rule_files": [str(folder / RULES_FILE)], "evaluation_interval": "1m", "tests": [test]}
    (folder / "test.yml").write_text(yaml.safe_dump(document))
    promtool("test", "rules", str(folder / "test.yml"))


@needs_promtool
@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_for_what_it_names_and_no_other_does(tmp_path: Path, alert: str) -> None:
    expires_at = 2000 if alert == "EndIsNear" else None
    firing(tmp_path, expires_at, CASES[alert], {alert})


@needs_promtool
def test_nothing_fires_for_a_healthy_deployment(tmp_path: Path) -> None:
    firing(tmp_path, 10_000, CALM, set())
