"""Whether the machine on AWS is switched on. Not yet run on a real cloud."""

from __future__ import annotations

import pulumi
import pulumi_aws as aws

from stacks.vm import GpuVmArgs


def keep_power(args: GpuVmArgs, instance: aws.ec2.Instance, parent: pulumi.Resource) -> None:
    """Stops and starts the instance in place, by a resource that is new each time: a machine that stopped itself is
    started although Pulumi's state never knew. Deleting one leaves the machine as it is. Before the first stop there is
    none: it must not meddle with a machine that sets itself up."""
    settings = args.settings
    if not settings.stopped and settings.woken_at is None:
        return
    aws.ec2transitgateway.InstanceState(
        f"{args.spec.name}-stop" if settings.stopped else f"{args.spec.name}-wake-{settings.woken_at}",
        instance_id=instance.id,
        state="stopped" if settings.stopped else "running",
        opts=pulumi.ResourceOptions(parent=parent),
    )
