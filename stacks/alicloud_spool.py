"""The mailbox as a folder of the machine, filled through Cloud Assistant, where OSS may not be used from outside.

The machine comes first and its stage 0 waits; the release follows it. Not yet run on a real cloud.
"""

from __future__ import annotations

import shlex
import sys

import pulumi
import pulumi_alicloud as alicloud
from pulumi_command import local

from provision.spec import DeploymentSpec
from provision.spool import Item, Order
from runtime.deployment import encode
from stacks.content import Content
from stacks.once import CODE_DIR


def fill_spool(
    spec: DeploymentSpec, instance: alicloud.ecs.Instance, content: Content, parent: pulumi.Resource
) -> pulumi.Resource:
    """Sends what the machine lacks, `current` last: at once for a new machine, again whenever the content changes."""
    objects = [*content.items, content.current]
    texts = [item.content or pulumi.Output.from_input("") for item in objects]

    def order(found: list[str]) -> str:
        instance_id, *given = found
        items = tuple(
            Item(key=item.key, path=item.path) if item.path else Item(key=item.key, content=text)
            for item, text in zip(objects, given, strict=True)
        )
        return encode(Order(region=spec.region or "", instance_id=instance_id, items=items)).decode()

    return local.Command(
        f"{spec.name}-mailbox",
        create=shlex.join([sys.executable, "-m", "provision.spool"]),
        dir=CODE_DIR,
        stdin=pulumi.Output.all(instance.id, *texts).apply(order),
        triggers=[instance.id],
        opts=pulumi.ResourceOptions(parent=parent),
    )
