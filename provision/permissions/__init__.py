"""What a user must be allowed to do for one spec, as policies for the cloud's console or command line. Pure."""

from __future__ import annotations

from provision.errors import UsageError
from provision.permissions.model import Policy
from provision.spec import DeploymentSpec

__all__ = ["Policy", "policies"]


def policies(spec: DeploymentSpec) -> tuple[Policy, ...]:
    """One policy, or several where one would be longer than the cloud takes. Raises UsageError without a cloud."""
    if spec.cloud == "aws":
        from provision.permissions.aws import aws_policies

        return aws_policies(spec)
    if spec.cloud == "alicloud":
        from provision.permissions.alicloud import alicloud_policies

        return alicloud_policies(spec)
    raise UsageError(f"{spec.cloud} needs no permissions of a cloud", why="aws and alicloud do")
