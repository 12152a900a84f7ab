"""Names and tags of cloud resources: what the program gives, and what `down` searches for. Pure.

Every resource carries the tag `deployctl=<name of the deployment>`; those that cannot be tagged are found by name.
"""

from __future__ import annotations

from collections.abc import Mapping

TAG = "deployctl"
WEIGHTS_TAG = "deployctl-weights"  # on the disk that outlives its machine: the deployment's name
PREFIX = "deployctl-"


def resource_name(deployment: str, part: str) -> str:
    """`deployctl-<deployment>-<part>`, for names that a cloud wants to be unique in an account or region.

    At most 64 characters (the limit of an IAM role): 10 + 25 + 1 + `part`.
    """
    return f"{PREFIX}{deployment}-{part}"


def bucket_prefix(deployment: str) -> str:
    """What the mailbox's name begins with; the program adds random hex, because bucket names are global."""
    return resource_name(deployment, "mailbox-")


def tags(deployment: str, own: Mapping[str, str] | None = None) -> dict[str, str]:
    """The user's own tags and ours, which win."""
    return {**(own or {}), TAG: deployment}
