"""Where a deployment's keys are kept: in the mailbox's folder on this machine, in the stack's config on a cloud.

On a cloud the keys beside deployctl's own stand in the config by their SHA-256, as rounds of its own key do, so that
every later `pulumi up` writes the same keys.json, from any laptop; the secrets themselves are nowhere.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from provision.errors import UsageError, not_up
from provision.host import HostTarget
from provision.keys import DEFAULT_KEY, Keys, besides_default, digest, rotate
from provision.local import LocalTarget
from provision.state import LocalState, make_api_key
from runtime.deployment import ApiKey, encode
from runtime.mailbox import KEYS

if TYPE_CHECKING:
    from provision.cloud import CloudTarget
    from provision.stack_settings import StackSettings
    from provision.target import Deployed

Report = Callable[[str], None]


class KeyStore(Protocol):
    """The keys of one deployment."""

    def read(self) -> Keys:
        """All of them, deployctl's own first. Raises NotRunningError before the first `up`."""
        ...

    def write(self, keys: Keys) -> None:
        """Replaces all but deployctl's own current key."""
        ...

    def renew_default(self, *, grace_s: int) -> str:
        """Gives deployctl another key of its own; the old one is good for `grace_s` seconds more."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class FolderKeys:
    """On this machine, or the copy here of what a machine over SSH has. The server reads the file anew when it changes.
    The caller holds the deployment's lock. `send`: gives the machine what is written here."""

    state: LocalState
    send: Callable[[bytes], None] | None = None

    def read(self) -> Keys:
        """Of deployctl's own keys, the one whose secret is here: a rotation that was cut off may have left two."""
        keys, secret = self.state.api_keys(), self.state.api_key()
        if not keys or secret is None:
            raise not_up(self.state.name)
        mine = ApiKey(name=DEFAULT_KEY, sha256=digest(secret))
        return (next((key for key in keys if key.sha256 == mine.sha256), mine), *besides_default(keys))

    def write(self, keys: Keys) -> None:
        self._put((self.read()[0], *besides_default(keys)))

    def renew_default(self, *, grace_s: int) -> str:
        """Both secrets are let in while the file changes, so that what stands there is valid at any moment."""
        keys, secret = self.read(), make_api_key()
        self._put((*keys, ApiKey(name=DEFAULT_KEY, sha256=digest(secret))))
        self.state.write_api_key(secret)
        self._put(rotate(keys, DEFAULT_KEY, digest(secret), grace_s=grace_s, now=time.time()))
        return secret

    def _put(self, keys: Keys) -> None:
        data = encode(list(keys))
        if self.send is not None:
            self.send(data)
        self.state.mailbox.put(KEYS, data)


@dataclasses.dataclass(frozen=True, slots=True)
class StackKeys:
    """On a cloud. A change is a `pulumi up`, after which the machine reads its mailbox within seconds."""

    target: CloudTarget
    report: Report

    def read(self) -> Keys:
        secret = self.target.exports.api_key
        if secret is None:
            raise not_up(self.target.name)
        return (ApiKey(name=DEFAULT_KEY, sha256=digest(secret)), *self.target.settings.keys)

    def write(self, keys: Keys) -> None:
        self.target.agree()
        self._up(dataclasses.replace(self.target.settings, keys=besides_default(keys)))

    def renew_default(self, *, grace_s: int) -> str:
        """Raises UsageError for a key that the user has chosen."""
        self.target.agree()
        spec, settings = self.target.spec(), self.target.settings
        if spec is not None and spec.api_key is not None:
            raise UsageError(
                f"deployctl's key of {self.target.name} is your own (api_key)",
                why="it stands in the stack's config; nothing makes it anew",
                next_command=f"pulumi config set --secret deployctl:api_key --stack {self.target.name}, then pulumi up",
            )
        keys = besides_default(rotate(self.read(), DEFAULT_KEY, "", grace_s=grace_s, now=time.time()))
        self._up(dataclasses.replace(settings, keys=keys, key_round=settings.key_round + 1))
        secret = self.target.exports.api_key
        if secret is None:
            raise not_up(self.target.name)
        return secret

    def _up(self, settings: StackSettings) -> None:
        """Raises NotRunningError: an update of a deployment whose machine has ended would buy another one."""
        from provision.rollout import bring_up

        spec, exports = self.target.spec(), self.target.exports
        ended = exports.expires_at is not None and exports.expires_at <= time.time()
        if spec is None or exports.instance_id is None or ended:
            raise not_up(self.target.name)
        bring_up(self.target, spec, settings, self.report)


def key_store(target: Deployed, report: Report) -> KeyStore:
    """Where the keys of `target` are kept. `report` gets lines of progress."""
    if isinstance(target, LocalTarget):
        return FolderKeys(target.state)
    if isinstance(target, HostTarget):
        return FolderKeys(target.state, functools.partial(target.put, KEYS))
    from provision.cloud import CloudTarget

    if isinstance(target, CloudTarget):
        return StackKeys(target, report)
    raise TypeError(f"{type(target).__name__} keeps its keys nowhere")
