"""What the program puts into the mailbox: one release, and beside it keys, end of life and secrets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import pulumi

from provision.render import deployment_for, hub_object, keys_object
from provision.spec import DeploymentSpec
from runtime.deployment import Deployment, encode
from runtime.mailbox import (
    CURRENT,
    HUB_SECRET,
    KEYS,
    LIFE,
    TLS_SECRET,
    Current,
    Life,
    release_key,
    wheel_key,
)
from stacks.once import read_file
from stacks.vm import GpuVmArgs

RELEASE_DIGITS = 10


@dataclass(frozen=True, slots=True)
class Item:
    """One object of the mailbox: a text, or the file at `path`. `part` names its resource within the deployment."""

    part: str
    key: str
    content: pulumi.Output[str] | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Content:
    """`items` may be written in any order; `current` after all of them: a machine that sees it finds what it names."""

    release: str
    items: tuple[Item, ...]
    current: Item


def make_content(
    args: GpuVmArgs,
    names: Sequence[pulumi.Input[str]],
    api_key: pulumi.Output[str],
    expires_at: pulumi.Output[int | None],
) -> Content:
    """`names`: addresses that the certificate must name, known once they are allocated. Raises SpecError."""
    spec, wheel, release = args.spec, args.wheel, release_id(args)
    current = Current(
        release=release,
        deployment=release_key(release),
        wheel=wheel_key(release, wheel.file_name),
        sha256=wheel.sha256,
        index_url=spec.pip_index,
    )
    hosts = [*names, *([spec.domain] if spec.domain else [])]
    deployment = pulumi.Output.all(*hosts).apply(lambda found: _text(_deployment(args, release, tuple(found))))
    items = [
        Item("deployment", release_key(release), deployment),
        wheel_item(args),
        Item("keys", KEYS, api_key.apply(lambda key: keys_object(key, args.settings.keys).decode())),
        Item("life", LIFE, expires_at.apply(lambda at: _text(_life(args, at)))),
        *_secrets(spec),
    ]
    return Content(release, tuple(items), Item("current", CURRENT, pulumi.Output.from_input(_text(current))))


def wheel_item(args: GpuVmArgs) -> Item:
    return Item("wheel", wheel_key(release_id(args), args.wheel.file_name), path=str(args.wheel.path))


def release_id(args: GpuVmArgs) -> str:
    """The same for the same order: a new address or key is no new release."""
    digest = hashlib.sha256(encode(_deployment(args, "", ()))).hexdigest() + args.wheel.sha256
    return "r" + hashlib.sha256(digest.encode()).hexdigest()[:RELEASE_DIGITS]


def _deployment(args: GpuVmArgs, release: str, names: tuple[str, ...]) -> Deployment:
    return deployment_for(args.spec, args.plan.engine_options(), args.plan.predicted(), release=release, names=names)


def _secrets(spec: DeploymentSpec) -> list[Item]:
    found = []
    if spec.hub_token is not None:
        token = hub_object(spec.hub_token.get_secret_value()).decode()
        found.append(Item("hub-token", HUB_SECRET, pulumi.Output.secret(token)))
    if spec.tls == "own" and spec.tls_cert and spec.tls_key:
        chain, key = read_file("tls_cert", spec.tls_cert), read_file("tls_key", spec.tls_key)
        text = msgspec.json.encode({"certificate": chain, "key": key}).decode()
        found.append(Item("tls", TLS_SECRET, pulumi.Output.secret(text)))
    return found


def _life(args: GpuVmArgs, expires_at: int | None) -> Life:
    return Life(expires_at, args.spec.idle_stop_seconds, args.settings.woken_at)


def _text(value: Deployment | Current | Life) -> str:
    return encode(value).decode()
