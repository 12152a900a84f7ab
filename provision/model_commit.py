"""What a model's revision stands for on its hub now."""

from __future__ import annotations

from provision.spec import DeploymentSpec

TIMEOUT_S = 15.0


def newest_commit(spec: DeploymentSpec) -> str | None:
    """The commit of a Hugging Face model's branch or tag; None where the hub does not say, or lists no commits."""
    ref = spec.model_ref
    if ref.kind != "hf":
        return None
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    token = spec.hub_token.get_secret_value() if spec.hub_token else None
    try:
        api = HfApi(endpoint=spec.hub_endpoint, token=token)
        return api.model_info(ref.location, revision=ref.revision, timeout=TIMEOUT_S).sha
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError):
        return None
