"""The shape of the model that a spec names: catalog, folder, demo, or the `config.json` of a hub or bucket."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from provision.catalog import MODELS
from provision.errors import PlanError
from provision.spec import DEFAULT_REGION, DeploymentSpec, nearest
from runtime.bucket import BucketError, open_bucket
from runtime.model_spec import ModelSpec, UnsupportedModelError
from runtime.vm import Provider

CONFIG = "config.json"
HUB_TIMEOUT_S = 15.0
MODELSCOPE = "https://www.modelscope.cn"
DEMO_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


class ModelSourceError(PlanError):
    """The model's shape cannot be read, or the decoder cannot run it."""


def model_spec_for(spec: DeploymentSpec) -> ModelSpec:
    """Offline for catalog models, folders and the demo; any other model costs one small download.

    Raises ModelSourceError.
    """
    ref = spec.model_ref
    rope = spec.rope_scaling.as_config() if spec.rope_scaling else None
    generation: Mapping[str, Any] | None = None
    if ref.kind == "demo":
        config: Mapping[str, Any] = MODELS[DEMO_MODEL].config
    elif ref.kind == "folder":
        folder = Path(ref.location).expanduser()
        config = _read_json(folder / CONFIG)
        beside = folder / "generation_config.json"
        generation = _read_json(beside) if beside.is_file() else None
    elif ref.kind in ("hf", "modelscope") and ref.location in MODELS:
        config = MODELS[ref.location].config
    elif ref.kind == "hf":
        config = _hub_config(spec)
    elif ref.kind == "modelscope":
        config = _modelscope_config(spec)
    else:
        config = _bucket_config(spec)
    try:
        return ModelSpec.from_config(config, generation_config=generation, rope_scaling=rope)
    except UnsupportedModelError as error:
        raise ModelSourceError(
            f"{spec.model} cannot be served", why=str(error), next_command="deployctl plan --model demo"
        ) from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ModelSourceError(f"{spec.model} cannot be served", why=f"its {CONFIG} is malformed ({error})") from error


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        return _parse_json(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise ModelSourceError(
            f"{path.parent} is not a model",
            why=f"there is no {path.name} in it (a Hugging Face model folder has one)",
            next_command=f"ls {path.parent}",
        ) from None
    except OSError as error:
        raise ModelSourceError(f"{path} cannot be read", why=str(error)) from None


def _parse_json(text: str, place: str) -> Mapping[str, Any]:
    try:
        loaded = json.loads(text)
    except ValueError as error:
        raise ModelSourceError(f"{place} is not JSON", why=str(error)) from None
    if not isinstance(loaded, dict):
        raise ModelSourceError(f"{place} does not hold a JSON object")
    return loaded


def _hub_config(spec: DeploymentSpec) -> Mapping[str, Any]:
    """config.json from the hub's cache on this machine, else one GET.

    Not through the hub library's own download, which retries for half a minute where there is no network:
    a plan should answer at once.
    """
    import httpx
    from huggingface_hub import hf_hub_url, try_to_load_from_cache

    ref = spec.model_ref
    cached = try_to_load_from_cache(ref.location, CONFIG, revision=ref.revision)
    if isinstance(cached, str):
        return _read_json(Path(cached))
    url = hf_hub_url(ref.location, CONFIG, revision=ref.revision, endpoint=spec.hub_endpoint)
    headers = {"authorization": f"Bearer {spec.hub_token.get_secret_value()}"} if spec.hub_token else {}
    try:
        response = httpx.get(url, headers=headers, timeout=HUB_TIMEOUT_S, follow_redirects=True)
    except httpx.HTTPError as error:
        hub = spec.hub_endpoint or "the Hugging Face hub"
        why = f"{hub} cannot be reached, and its {CONFIG} is not in the cache ({error})"
        raise _hub_error(spec, why, "--hub-endpoint https://a-mirror.example.org") from None
    if response.status_code != httpx.codes.OK:
        raise _refused(spec, response.status_code, response.headers.get("x-error-code", ""))
    return _parse_json(response.text, url)


def _modelscope_config(spec: DeploymentSpec) -> Mapping[str, Any]:
    """One GET from ModelScope, or from the mirror that its own tools read from MODELSCOPE_ENDPOINT."""
    import httpx

    ref = spec.model_ref
    base = os.environ.get("MODELSCOPE_ENDPOINT") or MODELSCOPE
    url = f"{base.rstrip('/')}/models/{ref.location}/resolve/{ref.revision or 'master'}/{CONFIG}"
    headers = {"authorization": f"Bearer {spec.hub_token.get_secret_value()}"} if spec.hub_token else {}
    try:
        response = httpx.get(url, headers=headers, timeout=HUB_TIMEOUT_S, follow_redirects=True)
    except httpx.HTTPError as error:
        raise _hub_error(spec, f"{base} cannot be reached ({error})") from None
    if response.status_code != httpx.codes.OK:
        raise _refused(spec, response.status_code, "")
    return _parse_json(response.text, url)


def _bucket_config(spec: DeploymentSpec) -> Mapping[str, Any]:
    """config.json from a bucket, with the credentials of the cloud's own tools on this machine."""
    ref = spec.model_ref
    provider: Provider = "aws" if ref.kind == "s3" else "alicloud"
    bucket, _, prefix = ref.location.partition("/")
    key = f"{prefix.rstrip('/')}/{CONFIG}".lstrip("/")
    try:
        data = open_bucket(provider, spec.region or DEFAULT_REGION[provider], bucket).get(key)
    except BucketError as error:
        raise ModelSourceError(
            f"the shape of {spec.model} is unknown", why=str(error), next_command=f"deployctl plan --model {spec.model}"
        ) from error
    if data is None:
        raise ModelSourceError(
            f"{spec.model} is not a model",
            why=f"there is no {CONFIG} in it (a Hugging Face model folder has one)",
            next_command="deployctl weights push --help",
        )
    return _parse_json(data.decode("utf-8", "replace"), f"{ref.kind}://{bucket}/{key}")


def _refused(spec: DeploymentSpec, status: int, code: str) -> ModelSourceError:
    """The hub's answer in words; `code` is its header X-Error-Code."""
    if code == "GatedRepo":
        return _hub_error(spec, "the model is gated: accept the terms on its page", "--hub-token …")
    if code == "RevisionNotFound":
        return _hub_error(spec, f"there is no revision {spec.model_ref.revision!r}")
    if code == "EntryNotFound":
        return _hub_error(spec, f"it has no {CONFIG}, so it is not a transformers checkpoint")
    if status in (401, 403, 404):
        near = nearest(spec.model_ref.location, MODELS)
        hint = f"; did you mean {near}?" if near else ""
        return _hub_error(spec, f"there is no such model, or it is private (HTTP {status}){hint}")
    return _hub_error(spec, f"the hub answered HTTP {status}; try again later")


def _hub_error(spec: DeploymentSpec, why: str, option: str = "") -> ModelSourceError:
    command = f"deployctl plan --model {spec.model} {option}".rstrip()
    return ModelSourceError(f"the shape of {spec.model} is unknown", why=why, next_command=command)
