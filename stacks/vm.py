"""What both clouds' components take and give: the same typed arguments, the same typed outputs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pulumi

from provision.planning import Plan
from provision.preflight import Preflight
from provision.spec import DeploymentSpec
from provision.stack_settings import Placement, StackSettings
from provision.wheel import Wheel


@dataclass(frozen=True, slots=True)
class GpuVmArgs:
    """Everything that a component needs to know. `wheel`: the runtime's, as the machine installs it."""

    spec: DeploymentSpec
    plan: Plan
    settings: StackSettings
    preflight: Preflight
    wheel: Wheel

    @property
    def place(self) -> Placement:
        """Where the machine goes: the candidate that has capacity, else the first."""
        return self.settings.placement or self.preflight.candidates[0]

    @property
    def is_place_free(self) -> bool:
        """Nobody has named a zone: a machine that exists stays where it is, whatever comes first today."""
        return self.settings.placement is None and not self.spec.zones and self.spec.subnet_id is None


@dataclass(frozen=True, slots=True)
class GpuVmOutputs:
    """What a deployment exports, under these names. Prices in US dollars per hour, None where the catalog has none."""

    endpoint: pulumi.Output[str]  # base URL, ends in /v1
    api_key: pulumi.Output[str]  # secret
    instance_id: pulumi.Output[str]
    public_ip: pulumi.Output[str | None]
    private_ip: pulumi.Output[str]
    region: pulumi.Output[str]
    zone: pulumi.Output[str]
    instance_type: pulumi.Output[str]
    image: pulumi.Output[str]
    ssh_user: pulumi.Output[str]
    ssh_private_key: pulumi.Output[str | None]  # secret; None with the user's own public key
    mailbox: pulumi.Output[str]  # name of the bucket, or the machine's spool (provision.mailboxes)
    release: pulumi.Output[str]
    allowed_cidrs: pulumi.Output[list[str]]
    made_at: pulumi.Output[int]  # seconds since the epoch
    expires_at: pulumi.Output[int | None]  # seconds since the epoch
    stopped: pulumi.Output[bool]  # switched off, so that computing is not billed
    woken_at: pulumi.Output[int]  # seconds since the epoch; 0 = never stopped
    keys: pulumi.Output[str]  # the keys beside api_key, by their SHA-256, in JSON
    key_round: pulumi.Output[int]  # how often api_key was made anew

    def by_name(self) -> dict[str, pulumi.Output[Any]]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


class GpuVm(pulumi.ComponentResource):
    """One VM that serves one model, with all that it needs. Children are its own; nothing is protected."""

    outputs: GpuVmOutputs


def base_url(spec: DeploymentSpec, address: str) -> str:
    """The endpoint at an address of the VM, or at the spec's domain."""
    scheme = "http" if spec.tls == "off" else "https"
    return f"{scheme}://{spec.domain or address}:{spec.port}/v1"
