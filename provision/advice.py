"""Warnings of a plan: what will work, and may still surprise. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from provision.rules import ANYWHERE
from provision.spec import DeploymentSpec, in_mainland_china
from runtime import sizing
from runtime.model_spec import ModelSpec
from runtime.sizing import GIB, Machine

TIGHT = 1.5  # requests of full length; below this a second one may wait


def advise(
    spec: DeploymentSpec, model: ModelSpec, machine: Machine, concurrency: float, max_model_len: int
) -> Iterator[str]:
    """`concurrency` in requests of `max_model_len` tokens; 0 = the plan does not fit anyway."""
    if 0 < concurrency < TIGHT:
        yield (f"the KV cache holds {concurrency:.1f} requests of {max_model_len} tokens: a second such request waits")
    if machine.gpu is not None and sizing.checkpoint_bytes(model) > machine.ram_bytes:
        ram = machine.ram_bytes // GIB
        yield f"host RAM ({ram} GiB) is smaller than the weights: every restart reads them from disk again"
    if spec.is_cloud:
        yield from _cloud(spec)


def _cloud(spec: DeploymentSpec) -> Iterator[str]:
    public = spec.endpoint == "public"
    if public and ANYWHERE in spec.allowed_cidrs:
        yield f"allowed_cidrs {ANYWHERE}: the whole internet can reach the port; only the API key protects it"
    if public and spec.tls == "off":
        yield "tls off: key and prompts cross the internet in clear text"
    if spec.ttl_seconds == 0:
        yield "ttl 0: the machine stays, and costs, until `deployctl down`"
    if in_mainland_china(spec.cloud, spec.region) and spec.model_ref.kind == "hf" and spec.hub_endpoint is None:
        yield (
            f"huggingface.co cannot be relied on from {spec.region}: use modelscope:{spec.model_ref.location}, "
            "or a hub_endpoint"
        )
    if spec.spot:
        yield "spot: the price moves below the on-demand one shown here, and the machine may be taken back"
