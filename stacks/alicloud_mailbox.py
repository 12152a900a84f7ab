"""The mailbox on OSS: a private, encrypted bucket, and the objects of the current release.

Accounts made since 2025-03-20 may not use the public endpoints of OSS in mainland regions for data
(PublicEndpointForbidden): there the first object fails, which is before anything is bought, and `mailbox:
cloud_assistant` (stacks/alicloud_spool.py) takes its place. The provider reads OSS_ENDPOINT: on a machine of the same
region, its internal endpoint works. Not yet run on a real cloud.
"""

from __future__ import annotations

from collections.abc import Sequence

import pulumi
import pulumi_alicloud as alicloud
import pulumi_random as random

from provision.naming import bucket_prefix, tags
from provision.spec import DeploymentSpec
from stacks.content import Content, Item

ID_BYTES = 4


def make_bucket(spec: DeploymentSpec, parent: pulumi.Resource) -> alicloud.oss.Bucket:
    """Deleted with whatever the machine has written into it."""
    name = spec.name
    options = pulumi.ResourceOptions(parent=parent)
    unique = random.RandomId(f"{name}-mailbox", byte_length=ID_BYTES, opts=options)
    bucket = alicloud.oss.Bucket(
        f"{name}-mailbox",
        bucket=unique.hex.apply(lambda digits: bucket_prefix(name) + digits),
        storage_class="Standard",
        redundancy_type="LRS",
        force_destroy=True,
        server_side_encryption_rule=alicloud.oss.BucketServerSideEncryptionRuleArgs(sse_algorithm="AES256"),
        tags=tags(name, spec.tags),
        # The access list is a resource of its own; both would change it in turn.
        opts=pulumi.ResourceOptions(parent=parent, ignore_changes=["acl"]),
    )
    private = alicloud.oss.BucketAcl(f"{name}-mailbox", bucket=bucket.bucket, acl="private", opts=options)
    alicloud.oss.BucketPublicAccessBlock(
        f"{name}-mailbox",
        bucket=bucket.bucket,
        block_public_access=True,
        opts=pulumi.ResourceOptions(parent=parent, depends_on=[private]),
    )
    return bucket


def fill_bucket(
    deployment: str,
    bucket: alicloud.oss.Bucket,
    content: Content,
    wheel: pulumi.Resource,
    parent: pulumi.Resource,
) -> pulumi.Resource:
    """Writes everything but the wheel, which is there, `current` last, and returns that one."""
    others = [write_item(deployment, bucket, item, parent) for item in content.items if item.part != "wheel"]
    return write_item(deployment, bucket, content.current, parent, [wheel, *others])


def write_item(
    deployment: str,
    bucket: alicloud.oss.Bucket,
    item: Item,
    parent: pulumi.Resource,
    after: Sequence[pulumi.Resource] = (),
) -> pulumi.Resource:
    return alicloud.oss.BucketObject(
        f"{deployment}-{item.part}",
        bucket=bucket.bucket,
        key=item.key,
        content=item.content,
        source=item.path,
        acl="private",
        # A file's key names its release: the same key from another laptop, with another path, is the same file.
        opts=pulumi.ResourceOptions(parent=parent, depends_on=list(after), ignore_changes=["source"]),
    )


def internal_endpoint(bucket: str | None, region: str) -> str:
    """A bucket, or OSS itself, from inside the region: free traffic, and no internet needed."""
    return f"https://{f'{bucket}.' if bucket else ''}oss-{region}-internal.aliyuncs.com"
