"""What the smoke test deploys, and when it refuses to begin. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

VARIABLE = "DEPLOYCTL_REAL_CLOUD"
REGION_VARIABLE = "DEPLOYCTL_REAL_REGION"


@dataclass(frozen=True, slots=True)
class Plan:
    """A small model on a cheap GPU type. `shorter`: the longest request after the redeploy, in tokens."""

    cloud: str
    region: str
    instance_type: str
    model: str
    name: str = "smoke"
    ttl: str = "1h"
    shorter: str = "4096"

    @property
    def spec(self) -> tuple[str, ...]:
        """The options of `deployctl up`."""
        return (
            "--name", self.name, "--cloud", self.cloud, "--region", self.region,
            "--instance-type", self.instance_type, "--model", self.model,
        )  # fmt: skip


PLANS = {
    "aws": Plan("aws", "us-east-1", "g4dn.xlarge", "Qwen/Qwen2.5-1.5B-Instruct"),
    # Outside the mainland: new accounts may use the public endpoint of OSS there.
    "alicloud": Plan("alicloud", "ap-southeast-1", "ecs.gn7i-c8g1.2xlarge", "Qwen/Qwen2.5-1.5B-Instruct"),
}


def choose(environ: Mapping[str, str], *, consent: bool) -> Plan | str:
    """The plan, or why nothing is begun."""
    cloud = environ.get(VARIABLE)
    if cloud is None:
        return f"nothing was done: set {VARIABLE}=aws or alicloud (see tests/real_cloud/README.md)"
    plan = PLANS.get(cloud)
    if plan is None:
        return f"nothing was done: {VARIABLE}={cloud!r} is neither aws nor alicloud"
    if not consent:
        return f"nothing was done: a {plan.instance_type} costs money; say so with --yes"
    return replace(plan, region=environ.get(REGION_VARIABLE) or plan.region)
