"""Stops this very instance through the cloud's own API, so that the billing of its computing ends.

A power-off from inside would not do: on AWS it terminates the machine, on Alibaba Cloud the billing goes on. The role
of the machine may stop it and nothing else of that kind. Not yet run on a real cloud.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from runtime.alicloud_credentials import CredentialsError, KeyChain
from runtime.vm import Vm

ECS_VERSION = "2014-05-26"
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30


class PowerError(Exception):
    """The cloud did not stop the machine; says why."""


def stop_instance(vm: Vm, instance_id: str, env: Mapping[str, str] = os.environ) -> None:
    """Returns once the cloud has taken the order; the machine is switched off soon after. Raises PowerError."""
    if vm.provider == "aws":
        _stop_on_aws(vm.region, instance_id)
    elif vm.provider == "alicloud":
        _stop_on_alicloud(vm.region, instance_id, env)
    else:
        raise PowerError(f"nobody rents a machine of the kind {vm.provider}")


def ecs_endpoint(region: str, env: Mapping[str, str]) -> str:
    """The address of ECS's API inside of a VPC, which needs no way to the internet ("Endpoints" in the ECS API
    reference); ECS_ENDPOINT names another one, as for every tool of Alibaba Cloud."""
    return env.get("ECS_ENDPOINT") or f"https://ecs-vpc.{region}.aliyuncs.com"


def _stop_on_aws(region: str, instance_id: str) -> None:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    patience = Config(connect_timeout=CONNECT_TIMEOUT_S, read_timeout=READ_TIMEOUT_S)
    try:
        client = boto3.session.Session().client("ec2", region_name=region, config=patience)
        client.stop_instances(InstanceIds=[instance_id])
    except (BotoCoreError, ClientError) as error:
        raise PowerError(f"EC2 did not stop {instance_id}: {error}") from error


def _stop_on_alicloud(region: str, instance_id: str, env: Mapping[str, str]) -> None:
    from runtime.alicloud_api import NoAnswerError, RefusedError, call_rpc

    # Without the mode, the account's default decides, and that is to keep charging.
    order = {"RegionId": region, "InstanceId": instance_id, "StoppedMode": "StopCharging"}
    try:
        call_rpc(KeyChain(env).find(), ecs_endpoint(region, env), ECS_VERSION, "StopInstance", order)
    except (CredentialsError, RefusedError, NoAnswerError) as error:
        raise PowerError(f"ECS did not stop {instance_id}: {error}") from error
