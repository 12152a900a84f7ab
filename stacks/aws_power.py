"""Whether the machine on AWS is switched on. Not yet run on a real cloud."""

from __future__ import annotations

import pulumi
import pulumi_aws as aws

from stacks.vm import GpuVmArgs


def keep_power(args: GpuVmArgs, instance: aws.ec2.Instance, parent: pulumi.Resource) -> None:
    """Stops and starts the instance in place. Before the first stop there is no such resource: it must not meddle with
    a machine that sets itself up. Deleting it leaves the machine as it is."""
    settings = args.settings
    if not settings.stopped and settings.woken_at is None:
        return
    aws.ec2transitgateway.InstanceState(
        f"{args.spec.name}-power",
        instance_id=instance.id,
        state="stopped" if settings.stopped else "running",
        opts=pulumi.ResourceOptions(parent=parent),
    )
