"""Which cloud's component makes the VM. Only that cloud's SDK is imported."""

from __future__ import annotations

import pulumi

from provision.backend import check_parts
from provision.spec import DeploymentSpec
from stacks.once import pin_region
from stacks.vm import GpuVm, GpuVmArgs


def make_provider(spec: DeploymentSpec) -> pulumi.ProviderResource:
    """The spec's region of the user's account; it tags everything. Raises MissingPartError."""
    check_parts(spec.cloud)
    options = pulumi.ResourceOptions(depends_on=[pin_region(spec)])
    if spec.cloud == "aws":
        from stacks import aws

        return aws.make_provider(spec, options)
    from stacks import alicloud

    return alicloud.make_provider(spec, options)


def make_component(args: GpuVmArgs, provider: pulumi.ProviderResource) -> GpuVm:
    options = pulumi.ResourceOptions(providers=[provider])
    if args.spec.cloud == "aws":
        from stacks.aws import AwsGpuVm

        return AwsGpuVm(args.spec.name, args, options)
    from stacks.alicloud import AlicloudGpuVm

    return AlicloudGpuVm(args.spec.name, args, options)
