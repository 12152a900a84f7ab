"""A host that several laptops change: what stands on the machine counts, and each laptop's copy follows it.

    state folder: key, spec, mailbox (copy)  ◄── release, spec, keys of another laptop ──  spool of the host

The copy here is what most commands read, and what the next release is made from: an old one would take back what
somebody else has changed. The secret of deployctl's own key is on no machine, so that it cannot be taken over.
"""

from __future__ import annotations

import json

from provision.config import resolve
from provision.errors import UsageError
from provision.host import HostTarget
from provision.keys import digest
from provision.render import changes
from provision.state import LocalState
from runtime.deployment import decode_keys
from runtime.mailbox import (
    ASKED,
    CURRENT,
    KEYS,
    Current,
    decode_asked,
    decode_current,
    decode_if_sound,
    spec_key,
    write_atomic,
)


def agree(target: HostTarget, *, api_key: str | None = None, host: str | None = None) -> None:
    """Before a change: takes over what another laptop has asked for since. `api_key`, `host`: what the user says now.

    Raises UsageError where no key of the deployment is known here, ConnectionFailedError.
    """
    keys, data = target.get(KEYS), target.get(CURRENT)
    if keys is None or data is None:
        return
    state, there = target.state, decode_current(data)
    if api_key is None:
        secret = state.api_key()
        if secret is None or digest(secret) not in {key.sha256 for key in decode_keys(keys)}:
            raise unknown_key(target)
    if state.mailbox.get(KEYS) != keys:
        state.mailbox.put(KEYS, keys)
    here = state.current()
    if here is None or here.release != there.release:
        _adopt(target, there, data, here, host)


def unknown_key(target: HostTarget) -> UsageError:
    home = target.state.root
    return UsageError(
        f"{target.name} runs on {target.record.address}, and the key that this laptop has is not let in there",
        why=f"the last order was given by {_asker(target)};\nanother release from here would replace its key",
        next_command=f"copy {home}/api_key from the laptop that has it; or the same command with --api-key, "
        "which takes the deployment over",
    )


def _adopt(target: HostTarget, there: Current, data: bytes, here: Current | None, host: str | None) -> None:
    """A release without its spec is one whose first `up` was cut off; `up` makes it whole."""
    spec, deployment = target.get(spec_key(there.release)), target.get(there.deployment)
    if spec is None or deployment is None:
        return
    state = target.state
    values = json.loads(spec)
    values["host"] = host or (state.spec_values() or values)["host"]
    known = "none" if here is None else here.release
    target.report(f"{target.name} was changed by {_asker(target)}: release {there.release} there, {known} here;")
    target.report("what is there counts:")
    for line in _differences(state, values):
        target.report(f"  {line}")
    text = json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n"
    write_atomic(state.specs_dir / f"{there.release}.json", text)
    write_atomic(state.specs_dir / f"{there.release}.current.json", data)
    state.mailbox.put(there.deployment, deployment)
    state.mailbox.put(CURRENT, data)
    write_atomic(state.spec_file, text)


def _differences(state: LocalState, values: dict[str, object]) -> list[str]:
    stored = state.spec_values()
    if stored is None:
        return []
    found = changes(resolve(stored, env={}).spec, resolve(values, env={}).spec)
    return [str(item) for item in found] or ["nothing but the release itself"]


def _asker(target: HostTarget) -> str:
    asked = decode_if_sound(target.get(ASKED), decode_asked)
    return "somebody" if asked is None else f"{asked.by} (`{asked.command}`)"
