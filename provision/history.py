"""What each release of a cloud deployment was asked to be: specs and wheels beside the stack's own objects in its
mailbox, so that `rollback` works from any laptop.

    history/<release>.json     {"spec": the values of the spec without secrets, "wheel": file name, "sha256": …}
    history/<sha256>/<file>    the wheel

The stack's program writes the objects of the current release alone, and Pulumi deletes the others'.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from provision.errors import NotFoundError
from provision.mailboxes import Deletes, copy_object
from provision.spec import DeploymentSpec
from provision.state import cache_root
from runtime.deployment import Struct
from runtime.mailbox import CURRENT, Mailbox, decode_current, write_atomic

FOLDER = "history/"


class Past(Struct, frozen=True):
    """One release: `spec` as DeploymentSpec.public_values gives it; `wheel` is the file's name."""

    spec: dict[str, Any]
    wheel: str | None = None
    sha256: str | None = None


def remember(mailbox: Mailbox, release: str, spec: DeploymentSpec) -> None:
    """Writes down what the current release is, once. Raises BucketError."""
    data = mailbox.get(CURRENT)
    current = None if data is None else decode_current(data)
    if current is None or current.release != release:
        return
    name = None if current.wheel is None else current.wheel.rpartition("/")[2]
    past = Past(spec=spec.public_values(), wheel=name, sha256=current.sha256)
    if name is not None and current.wheel is not None:
        key = f"{FOLDER}{current.sha256}/{name}"
        if not mailbox.keys(key):
            copy_object(mailbox, current.wheel, key)
    mailbox.put(f"{FOLDER}{release}.json", msgspec.json.encode(past))


def forget(mailbox: Mailbox, kept: Sequence[str]) -> list[str]:
    """Deletes what the mailbox holds of releases that are neither `kept` nor the current one, and wheels that none of
    the others needs; returns which releases. Raises BucketError."""
    if not isinstance(mailbox, Deletes):
        return []
    data = mailbox.get(CURRENT)
    stays = {*kept, *([] if data is None else [decode_current(data).release])}
    written = mailbox.keys(FOLDER)
    pages = {key.removeprefix(FOLDER).removesuffix(".json"): key for key in written if key.endswith(".json")}
    needed = {recall(mailbox, "", release).sha256 for release in pages.keys() & stays}
    wheels = [key for key in written if key.endswith(".whl") and key.split("/")[1] not in needed]
    # Of a bucket Pulumi deletes these itself; a machine's spool is filled by a command and emptied by none.
    ordered = {key: key.split("/")[1] for key in mailbox.keys("release/") if key.count("/") > 1}
    gone = {*pages, *ordered.values()} - stays
    old = [*(pages[release] for release in pages.keys() & gone), *wheels]
    mailbox.delete([*old, *(key for key, release in ordered.items() if release in gone)])
    return sorted(gone)


def recall(mailbox: Mailbox, name: str, release: str) -> Past:
    """Raises NotFoundError, BucketError."""
    data = mailbox.get(f"{FOLDER}{release}.json")
    if data is None:
        raise NotFoundError(
            f"nobody has written down what release {release} of {name} was asked to be",
            why="a plain `pulumi up` made it, or it was never proved",
            next_command="deployctl redeploy with the values that you want",
        )
    return msgspec.json.decode(data, type=Past)


def fetch_wheel(mailbox: Mailbox, past: Past, name: str) -> Path:
    """The wheel of that release as a file in the cache. Raises NotFoundError, BucketError."""
    path = cache_root() / "history" / (past.sha256 or "")[:12] / (past.wheel or "")
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == past.sha256:
        return path
    data = mailbox.get(f"{FOLDER}{past.sha256}/{past.wheel}")
    if data is None or hashlib.sha256(data).hexdigest() != past.sha256:
        raise NotFoundError(
            f"the version of deployctl that served {name} then is not kept",
            why=f"the mailbox has no whole {past.wheel}",
            next_command="deployctl redeploy with the values that you want, or --runtime-wheel",
        )
    write_atomic(path, data)
    return path
