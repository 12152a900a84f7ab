"""The cloud's own timer: an EventBridge schedule that deletes the machine, whether or not anybody's laptop is on."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

import pulumi
import pulumi_aws as aws

from provision.naming import resource_name
from stacks.aws_policies import terminate_policy, trust_policy
from stacks.vm import GpuVmArgs

TERMINATE = "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances"


def make_timer(
    args: GpuVmArgs, instance: aws.ec2.Instance, expires_at: pulumi.Output[int | None], parent: pulumi.Resource
) -> None:
    """A schedule cannot be tagged, so it lies in a tagged group of its own; it deletes itself after it has run."""
    name, options = args.spec.name, pulumi.ResourceOptions(parent=parent)
    if args.spec.ttl_seconds == 0:
        price = args.preflight.usd_per_hour
        cost = "at an unknown price" if price is None else f"at ${price:.2f} per hour"
        pulumi.log.warn(f"ttl is 0: nothing ends this machine by itself; it bills {cost} until `deployctl down`")
        return
    group = aws.scheduler.ScheduleGroup(f"{name}-ttl", name=resource_name(name, "ttl"), opts=options)
    role = aws.iam.Role(
        f"{name}-ttl",
        name=resource_name(name, "scheduler"),
        description=f"deployctl {name}: what the timer may do",
        assume_role_policy=group.arn.apply(lambda arn: trust_policy("scheduler.amazonaws.com", arn)),
        opts=options,
    )
    right = aws.iam.RolePolicy(f"{name}-ttl", role=role.name, policy=instance.arn.apply(terminate_policy), opts=options)
    aws.scheduler.Schedule(
        f"{name}-ttl",
        name=resource_name(name, "ttl"),
        group_name=group.name,
        description=f"deployctl {name}: deletes the machine",
        schedule_expression=expires_at.apply(schedule_expression),
        schedule_expression_timezone="UTC",
        flexible_time_window=aws.scheduler.ScheduleFlexibleTimeWindowArgs(mode="OFF"),
        action_after_completion="DELETE",
        target=aws.scheduler.ScheduleTargetArgs(
            arn=TERMINATE,
            role_arn=role.arn,
            input=instance.id.apply(lambda id: json.dumps({"InstanceIds": [id]})),
        ),
        opts=pulumi.ResourceOptions(parent=parent, depends_on=[right]),
    )


def schedule_expression(expires_at: int | None) -> str:
    """`at(2026-11-22T08:00:00)`. Raises RunError for a time that has passed: a machine would start without an end."""
    if expires_at is None or expires_at <= time.time():
        raise pulumi.RunError(
            "the time at which this deployment ends has passed: a machine that starts now would have no timer\n"
            'next: pulumi config set deployctl:expires_at "$(( $(date +%s) + 28800 ))"'
        )
    return f"at({datetime.fromtimestamp(expires_at, UTC):%Y-%m-%dT%H:%M:%S})"
