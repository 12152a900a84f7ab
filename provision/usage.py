"""What a deployment has been used for since its server's start, from the runtime's own counters at /metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from provision.client import CONNECT_TIMEOUT_S, pinned_context
from provision.errors import EndpointError

if TYPE_CHECKING:
    from provision.target import Access

ANSWER_TIMEOUT_S = 10.0
REQUESTS = "deployctl_key_requests_total"
REFUSED = "deployctl_key_requests_refused_total"
TOKENS = "deployctl_key_tokens_total"
PROMPT = "deployctl_prompt_tokens_total"
GENERATED = "deployctl_generation_tokens_total"
UPTIME = "deployctl_uptime_seconds"


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """One key's use. `refused`: requests over its limits."""

    requests: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """All keys by name, and what the engine has worked through for all of them, within `seconds`: None where
    the server does not say since when it counts."""

    seconds: float | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0
    keys: Mapping[str, KeyUsage] = field(default_factory=dict)

    def of(self, key: str) -> KeyUsage:
        return self.keys.get(key, KeyUsage())


def read_usage(text: str) -> Usage:
    """From the text form of Prometheus. Raises ValueError."""
    from prometheus_client.parser import text_string_to_metric_families

    prompt = generated = 0
    seconds: float | None = None
    keys: dict[str, KeyUsage] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            count, key = int(sample.value), sample.labels.get("key", "")
            seen = keys.get(key, KeyUsage())
            if sample.name == UPTIME:
                seconds = sample.value
            elif sample.name == PROMPT:
                prompt = count
            elif sample.name == GENERATED:
                generated = count
            elif sample.name == REQUESTS:
                keys[key] = replace(seen, requests=count)
            elif sample.name == REFUSED:
                keys[key] = replace(seen, refused=count)
            elif sample.name == TOKENS and sample.labels["kind"] == "prompt":
                keys[key] = replace(seen, prompt_tokens=count)
            elif sample.name == TOKENS:
                keys[key] = replace(seen, completion_tokens=count)
    return Usage(seconds, prompt, generated, keys)


def fetch_usage(access: Access) -> Usage:
    """Raises EndpointError."""
    import httpx

    url = access.base_url.removesuffix("/v1") + "/metrics"
    verify = True if access.certificate is None else pinned_context(access.certificate)
    timeout = httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    try:
        # A proxy from the environment must not see requests to this machine.
        with httpx.Client(verify=verify, timeout=timeout, trust_env=False) as client:
            answer = client.get(url, headers={"Authorization": f"Bearer {access.api_key}"})
            answer.raise_for_status()
        return read_usage(answer.text)
    except (httpx.HTTPError, ValueError) as error:
        raise EndpointError("the use of the endpoint is not known", why=f"{url}: {error}") from error
