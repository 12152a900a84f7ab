"""Buckets of the test engine's AWS, made in moto."""

from __future__ import annotations

from pathlib import Path

from tests.lab.moto_kind import Clients, Kind, nothing, tag_list
from tests.lab.pulumi_model import Created
from tests.lab.pulumi_wire import Properties

BUCKET = frozenset({"bucket"})
ACCESS = ("blockPublicAcls", "ignorePublicAcls", "blockPublicPolicy", "restrictPublicBuckets")


def _make_bucket(clients: Clients, inputs: Properties) -> Created:
    name = inputs["bucket"]
    # S3's oldest region is its default and must not be named.
    place = {} if clients.region == "us-east-1" else {"LocationConstraint": clients.region}
    clients.s3.create_bucket(Bucket=name, **({"CreateBucketConfiguration": place} if place else {}))
    if tags := tag_list(inputs):
        clients.s3.put_bucket_tagging(Bucket=name, Tagging={"TagSet": tags})
    return Created(name, {"arn": f"arn:aws:s3:::{name}"})


def _drop_bucket(clients: Clients, id: str, outputs: Properties) -> None:
    if outputs.get("forceDestroy"):
        for page in clients.s3.get_paginator("list_objects_v2").paginate(Bucket=id):
            for item in page.get("Contents", []):
                clients.s3.delete_object(Bucket=id, Key=item["Key"])
    clients.s3.delete_bucket(Bucket=id)


def _make_encryption(clients: Clients, inputs: Properties) -> Created:
    rules = [
        {
            "ApplyServerSideEncryptionByDefault": {
                "SSEAlgorithm": rule["applyServerSideEncryptionByDefault"]["sseAlgorithm"]
            }
        }
        for rule in inputs["rules"]
    ]
    clients.s3.put_bucket_encryption(Bucket=inputs["bucket"], ServerSideEncryptionConfiguration={"Rules": rules})
    return Created(inputs["bucket"])


def _make_access_block(clients: Clients, inputs: Properties) -> Created:
    block = {name[0].upper() + name[1:]: inputs[name] for name in ACCESS}
    clients.s3.put_public_access_block(Bucket=inputs["bucket"], PublicAccessBlockConfiguration=block)
    return Created(inputs["bucket"])


def _make_policy(clients: Clients, inputs: Properties) -> Created:
    """Kept in the state only: moto reads no conditions, and "deny without TLS" would deny everything."""
    return Created(inputs["bucket"])


def _make_object(clients: Clients, inputs: Properties) -> Created:
    source = inputs.get("source")
    data = Path(source["path"]).read_bytes() if source else inputs["content"].encode()
    tags = "&".join(f"{tag['Key']}={tag['Value']}" for tag in tag_list(inputs))
    clients.s3.put_object(Bucket=inputs["bucket"], Key=inputs["key"], Body=data, Tagging=tags)
    return Created(inputs["key"])


def _change_object(clients: Clients, id: str, inputs: Properties) -> Properties:
    return _make_object(clients, inputs).outputs


def _drop_object(clients: Clients, id: str, outputs: Properties) -> None:
    clients.s3.delete_object(Bucket=outputs["bucket"], Key=outputs["key"])


KINDS: dict[str, Kind] = {
    "aws:s3/bucket:Bucket": Kind(_make_bucket, _drop_bucket, fixed=BUCKET),
    "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration": Kind(
        _make_encryption, nothing, fixed=BUCKET
    ),
    "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock": Kind(_make_access_block, nothing, fixed=BUCKET),
    "aws:s3/bucketPolicy:BucketPolicy": Kind(_make_policy, nothing, fixed=BUCKET),
    "aws:s3/bucketObjectv2:BucketObjectv2": Kind(
        _make_object, _drop_object, _change_object, frozenset({"bucket", "key"})
    ),
}
