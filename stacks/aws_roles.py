"""The role with which the VM reaches its mailbox, its model's bucket and its own end."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from provision.naming import resource_name
from provision.spec import DeploymentSpec
from stacks.aws_policies import SSM_CORE, instance_policy, trust_policy


@dataclass(frozen=True, slots=True)
class InstanceRole:
    """`profile` is the instance profile's name; `rights` must be there before the machine boots."""

    profile: pulumi.Output[str]
    rights: tuple[pulumi.Resource, ...]


def make_instance_role(spec: DeploymentSpec, bucket: pulumi.Output[str], parent: pulumi.Resource) -> InstanceRole:
    """On intranet also what the SSM agent needs, for a shell."""
    name, options = spec.name, pulumi.ResourceOptions(parent=parent)
    role = aws.iam.Role(
        f"{name}-machine",
        name=resource_name(name, "role"),
        description=f"deployctl {name}: what the machine may do",
        assume_role_policy=trust_policy("ec2.amazonaws.com"),
        opts=options,
    )
    policy = bucket.apply(lambda found: instance_policy(name, found, spec.region or "", spec.model_ref))
    rights: list[pulumi.Resource] = [aws.iam.RolePolicy(f"{name}-machine", role=role.name, policy=policy, opts=options)]
    if spec.endpoint == "intranet":
        rights.append(aws.iam.RolePolicyAttachment(f"{name}-ssm", role=role.name, policy_arn=SSM_CORE, opts=options))
    profile = aws.iam.InstanceProfile(
        f"{name}-machine", name=resource_name(name, "profile"), role=role.name, opts=options
    )
    return InstanceRole(profile.name, tuple(rights))
