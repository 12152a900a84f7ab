"""Puts a release into the spool of a machine: `python -m provision.spool`, which the Pulumi program runs.

stdin: {"region", "instance_id", "items": [{"key", "content" or "path"}]}, written in this order. What the machine has
already is not sent again, so that the same order may be given any number of times.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from provision.errors import CloudError
from runtime.bucket import BucketError
from runtime.deployment import Struct

if TYPE_CHECKING:
    from provision.cloud_assistant import AssistantMailbox

START_LIMIT_S = 600.0  # from the cloud's "running" until Cloud Assistant answers: a machine boots in one or two minutes


class Item(Struct, frozen=True):
    """One object of the mailbox: a text, or the file at `path`."""

    key: str
    content: str | None = None
    path: str | None = None

    def data(self) -> bytes:
        """Raises OSError."""
        return Path(self.path).read_bytes() if self.path is not None else (self.content or "").encode()


class Order(Struct, frozen=True):
    """What the spool of which machine is to hold."""

    region: str
    instance_id: str
    items: tuple[Item, ...]


def fill(mailbox: AssistantMailbox, items: Sequence[Item], report: Callable[[str], None]) -> int:
    """Waits for the machine and writes what it lacks, in the order of `items`. Returns how many objects were sent.

    Raises BucketError, OSError.
    """
    mailbox.wait_for_machine(START_LIMIT_S)
    known, sent = mailbox.digests(), 0
    for item in items:
        data = item.data()
        if known.get(item.key) == hashlib.sha256(data).hexdigest():
            continue
        report(f"{item.key}: {len(data):,} bytes")
        mailbox.put(item.key, data)
        sent += 1
    return sent


def main() -> int:
    from provision.cloud_assistant import AssistantMailbox
    from provision.sweep.alicloud_client import AlicloudClient

    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    mailbox = AssistantMailbox(AlicloudClient(order.region, os.environ), order.instance_id)
    try:
        fill(mailbox, order.items, lambda line: print(line, file=sys.stderr, flush=True))
    except BucketError as error:
        failed = CloudError(
            f"the release could not be sent to {order.instance_id} through Cloud Assistant",
            why=str(error),
            next_command="the same command again; `deployctl permissions alicloud` names the rights that it needs",
        )
        print(f"{failed}\nnext: {failed.next_command}", file=sys.stderr)
        return failed.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
