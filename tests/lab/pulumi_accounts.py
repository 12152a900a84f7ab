"""Cloud accounts for the stand-in `pulumi`: providers that live in its process and talk to servers of the test's.

What a cloud is to do comes from files, because test and provider are different processes:

$DEPLOYCTL_LAB_REFUSALS   one error text per line; the next machines that are made are refused with them, in order
$DEPLOYCTL_LAB_HOLD       while this file exists, a machine that is made is not ready; $DEPLOYCTL_LAB_HOLD.begun says so
$DEPLOYCTL_LAB_ALICLOUD   what the account on Alibaba Cloud holds (tests.lab.alicloud_account)
$DEPLOYCTL_LAB_OSS        its object store, as the provider reaches it; without it objects are in that file only
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import alibabacloud_oss_v2 as oss
from alibabacloud_oss_v2.credentials import EnvironmentVariableCredentialsProvider

from runtime.bucket import open_bucket, service_of
from tests.lab.alicloud_account import read_account
from tests.lab.alicloud_provider import AlicloudProvider
from tests.lab.moto_cloud import MotoCloud
from tests.lab.pulumi_model import Created, Provider
from tests.lab.pulumi_wire import Properties
from tests.lab.small_providers import small_providers

MACHINES = ("aws:ec2/instance:Instance", "alicloud:ecs/instance:Instance")
BUCKET, OBJECT = "alicloud:oss/bucket:Bucket", "alicloud:oss/bucketObject:BucketObject"
ALICLOUD = "DEPLOYCTL_LAB_ALICLOUD"
OSS = "DEPLOYCTL_LAB_OSS"
REFUSALS = "DEPLOYCTL_LAB_REFUSALS"
HOLD = "DEPLOYCTL_LAB_HOLD"
REGION = "eu-west-1"
HOLD_LIMIT_S = 60


def aws_account() -> dict[str, Provider]:
    """An account in the servers at AWS_ENDPOINT_URL and AWS_ENDPOINT_URL_S3, which boto3 reads by itself."""
    return {**small_providers(), "aws": MoodyCloud(REGION)}


def alicloud_account() -> dict[str, Provider]:
    """The account in the file at DEPLOYCTL_LAB_ALICLOUD."""
    provider = MoodyAlicloud(read_account(Path(os.environ[ALICLOUD])))
    return {**small_providers(), "alicloud": provider}


class MoodyCloud(MotoCloud):
    """Refuses machines, or takes its time over them, as the files say."""

    def create(self, token: str, name: str, inputs: Properties, settings: Properties) -> Created:
        _refuse(token)
        made = super().create(token, name, inputs, settings)
        _hold(token)
        return made


class MoodyAlicloud(AlicloudProvider):
    """The same on Alibaba Cloud. Buckets and objects are made in the object store too, where there is one."""

    def create(self, token: str, name: str, inputs: Properties, settings: Properties) -> Created:
        _refuse(token)
        made = super().create(token, name, inputs, settings)
        self._store(token, inputs)
        _hold(token)
        return made

    def update(self, token: str, id: str, inputs: Properties, outputs: Properties, settings: Properties) -> Properties:
        found = super().update(token, id, inputs, outputs, settings)
        self._store(token, inputs)
        return found

    def delete(self, token: str, id: str, outputs: Properties, settings: Properties) -> None:
        super().delete(token, id, outputs, settings)
        address = os.environ.get(OSS)
        if address and token == OBJECT:
            open_bucket("alicloud", self.cloud.region, outputs["bucket"], address).delete([outputs["key"]])
        if address and token == BUCKET:
            bucket = open_bucket("alicloud", self.cloud.region, id, address)
            bucket.delete([blob.key for blob in bucket.blobs()])
            self._client(address).delete_bucket(oss.DeleteBucketRequest(bucket=id))

    def _store(self, token: str, inputs: Properties) -> None:
        address = os.environ.get(OSS)
        if address and token == BUCKET:
            self._client(address).put_bucket(oss.PutBucketRequest(bucket=inputs["bucket"]))
        if address and token == OBJECT:
            data = inputs["content"].encode() if inputs.get("content") else Path(inputs["source"]).read_bytes()
            open_bucket("alicloud", self.cloud.region, inputs["bucket"], address).put(inputs["key"], data)

    def _client(self, address: str) -> oss.Client:
        service, keys = service_of(address, ""), EnvironmentVariableCredentialsProvider()
        return oss.Client(
            oss.Config(self.cloud.region, service.url, credentials_provider=keys, use_path_style=service.path_style)
        )


def _refuse(token: str) -> None:
    path = os.environ.get(REFUSALS)
    lines = Path(path).read_text().splitlines() if path and Path(path).exists() else []
    if path and lines and token in MACHINES:
        Path(path).write_text("".join(f"{line}\n" for line in lines[1:]))
        raise RuntimeError(lines[0])


def _hold(token: str) -> None:
    path = os.environ.get(HOLD)
    deadline = time.monotonic() + HOLD_LIMIT_S
    while token in MACHINES and path and Path(path).exists() and time.monotonic() < deadline:
        Path(f"{path}.begun").touch()
        time.sleep(0.02)
