"""Where a cloud deployment's mailbox is, as one text: a bucket's name, or `cloud-assistant:<instance id>`.

The second is a folder of the machine, reached through Alibaba Cloud's API where the account may not use OSS from
outside. It is the stack's output `mailbox`, so that every command works from another laptop.
"""

from __future__ import annotations

import os
from typing import Protocol, runtime_checkable

from runtime.bucket import open_bucket
from runtime.mailbox import BucketMailbox, Mailbox
from runtime.vm import Provider

SCHEME = "cloud-assistant:"  # no bucket's name holds a colon
NOT_RUNNING = "NotRunning"  # BucketError.code: the machine that holds the mailbox is stopped, or gone
BUCKET_POLL_S = 2.0  # between two looks
SPOOL_POLL_S = 10.0  # each look is a command on the machine, and an account may run so many a day


def spool_address(instance_id: str) -> str:
    return SCHEME + instance_id


def is_spool(address: str) -> bool:
    return address.startswith(SCHEME)


def open_mailbox(provider: Provider, region: str, address: str, store: str | None = None) -> Mailbox:
    """Nothing is sent yet. `store`: address of the object store, None = the cloud's own. Raises BucketError."""
    if not is_spool(address):
        return BucketMailbox(open_bucket(provider, region, address, store))
    from provision.cloud_assistant import AssistantMailbox
    from provision.sweep.alicloud_client import AlicloudClient

    return AssistantMailbox(AlicloudClient(region, os.environ), address.removeprefix(SCHEME))


@runtime_checkable
class Copies(Protocol):
    """A mailbox that copies objects where they lie."""

    def copy(self, source: str, target: str) -> None: ...


@runtime_checkable
class Deletes(Protocol):
    """A mailbox of which objects can be deleted; keys that do not exist are fine."""

    def delete(self, keys: list[str]) -> None: ...


def copy_object(mailbox: Mailbox, source: str, target: str) -> None:
    """Nothing where there is no `source`. Raises BucketError."""
    if isinstance(mailbox, Copies):
        mailbox.copy(source, target)
    elif (data := mailbox.get(source)) is not None:
        mailbox.put(target, data)


def poll_s(address: str | None) -> float:
    """Seconds between two looks of somebody who waits."""
    return SPOOL_POLL_S if address is not None and is_spool(address) else BUCKET_POLL_S


def describe(address: str) -> str:
    """For people: "bucket deployctl-chat-mailbox-0123abcd"."""
    if is_spool(address):
        return f"a folder of {address.removeprefix(SCHEME)}, through Cloud Assistant"
    return f"bucket {address}"
