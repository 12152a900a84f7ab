"""What a model's revision stands for on its hub now."""

from __future__ import annotations

import os

from provision.spec import DeploymentSpec

HUB = "https://huggingface.co"
TIMEOUT_S = 15.0


def newest_commit(spec: DeploymentSpec) -> str | None:
    """The commit of a Hugging Face model's branch or tag, by one GET; None where the hub does not say, and for models
    from elsewhere: ModelScope lists no commit for a branch."""
    ref = spec.model_ref
    if ref.kind != "hf":
        return None
    import httpx

    hub = (spec.hub_endpoint or os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    headers = {"authorization": f"Bearer {spec.hub_token.get_secret_value()}"} if spec.hub_token else {}
    url = f"{hub}/api/models/{ref.location}/revision/{(ref.revision or 'main').replace('/', '%2F')}"
    try:
        answer = httpx.get(url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True)
        found = answer.raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return None
    commit = found.get("sha") if isinstance(found, dict) else None
    return commit if isinstance(commit, str) else None
