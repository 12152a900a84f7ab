"""The RAM role with which the VM reaches its mailbox, its model's bucket and its own stop."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
import pulumi_alicloud as alicloud

from provision.naming import resource_name, tags
from provision.spec import DeploymentSpec
from stacks.alicloud_policies import machine_policy, trust_policy


@dataclass(frozen=True, slots=True)
class MachineRole:
    """`name` of the role; `rights` must be there before the machine boots."""

    name: pulumi.Output[str]
    rights: tuple[pulumi.Resource, ...]


def make_machine_role(spec: DeploymentSpec, bucket: pulumi.Output[str | None], parent: pulumi.Resource) -> MachineRole:
    """`bucket` None: the mailbox is none. `force`: what somebody attached to it by hand does not keep it from being
    deleted."""
    name = spec.name
    options = pulumi.ResourceOptions(parent=parent, delete_before_replace=True)
    role = alicloud.ram.Role(
        f"{name}-machine",
        role_name=resource_name(name, "role"),
        description=f"deployctl {name}: what the machine may do",
        assume_role_policy_document=trust_policy(),
        force=True,
        tags=tags(name, spec.tags),
        opts=options,
    )
    policy = alicloud.ram.Policy(
        f"{name}-machine",
        policy_name=resource_name(name, "policy"),
        description=f"deployctl {name}: mailbox, weights, stop",
        policy_document=bucket.apply(lambda found: machine_policy(name, found, spec.region or "", spec.model_ref)),
        force=True,
        tags=tags(name, spec.tags),
        opts=options,
    )
    attached = alicloud.ram.RolePolicyAttachment(
        f"{name}-machine",
        role_name=role.role_name,
        policy_name=policy.policy_name,
        policy_type="Custom",
        opts=options,
    )
    return MachineRole(role.role_name, (attached,))
