"""The mailbox on S3: a private bucket that takes TLS only, and the objects of the current release."""

from __future__ import annotations

import pulumi
import pulumi_aws as aws
import pulumi_random as random

from provision.naming import bucket_prefix
from stacks.aws_policies import tls_only_policy
from stacks.content import Content, Item

ID_BYTES = 4


def make_bucket(deployment: str, parent: pulumi.Resource) -> aws.s3.Bucket:
    """Deleted with whatever the machine has written into it."""
    options = pulumi.ResourceOptions(parent=parent)
    unique = random.RandomId(f"{deployment}-mailbox", byte_length=ID_BYTES, opts=options)
    name = unique.hex.apply(lambda digits: bucket_prefix(deployment) + digits)
    bucket = aws.s3.Bucket(f"{deployment}-mailbox", bucket=name, force_destroy=True, opts=options)
    aws.s3.BucketServerSideEncryptionConfiguration(
        f"{deployment}-mailbox",
        bucket=bucket.bucket,
        rules=[
            aws.s3.BucketServerSideEncryptionConfigurationRuleArgs(
                apply_server_side_encryption_by_default=(
                    aws.s3.BucketServerSideEncryptionConfigurationRuleApplyServerSideEncryptionByDefaultArgs(
                        sse_algorithm="AES256"
                    )
                )
            )
        ],
        opts=options,
    )
    closed = aws.s3.BucketPublicAccessBlock(
        f"{deployment}-mailbox",
        bucket=bucket.bucket,
        block_public_acls=True,
        block_public_policy=True,
        ignore_public_acls=True,
        restrict_public_buckets=True,
        opts=options,
    )
    aws.s3.BucketPolicy(
        f"{deployment}-mailbox",
        bucket=bucket.bucket,
        policy=bucket.bucket.apply(tls_only_policy),
        # S3 refuses two changes of a bucket's access at once.
        opts=pulumi.ResourceOptions(parent=parent, depends_on=[closed]),
    )
    return bucket


def fill_bucket(deployment: str, bucket: aws.s3.Bucket, content: Content, parent: pulumi.Resource) -> pulumi.Resource:
    """Writes everything, `current` last, and returns that one."""
    others = [_write(deployment, bucket, item, parent, []) for item in content.items]
    return _write(deployment, bucket, content.current, parent, others)


def _write(
    deployment: str, bucket: aws.s3.Bucket, item: Item, parent: pulumi.Resource, after: list[pulumi.Resource]
) -> pulumi.Resource:
    none = aws.s3.BucketObjectv2OverrideProviderDefaultTagsArgs(tags={})
    return aws.s3.BucketObjectv2(
        f"{deployment}-{item.part}",
        bucket=bucket.bucket,
        key=item.key,
        content=item.content,
        source=pulumi.FileAsset(item.path) if item.path else None,
        # An object takes ten tags at most; the bucket has them all.
        override_provider=aws.s3.BucketObjectv2OverrideProviderArgs(default_tags=none),
        opts=pulumi.ResourceOptions(parent=parent, depends_on=after),
    )
