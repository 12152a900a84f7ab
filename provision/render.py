"""From spec and plan to what travels: the mailbox objects of one release. Pure: nothing is read or written here."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from provision.keys import DEFAULT_KEY, digest
from provision.spec import DeploymentSpec
from runtime.deployment import (
    ApiKey,
    Deployment,
    EngineOptions,
    Listen,
    ModelSource,
    Predicted,
    Setup,
    encode,
)
from runtime.mailbox import CURRENT, HUB_SECRET, KEYS, LIFE, Current, Life, release_key

ANY_HOST = "0.0.0.0"


@dataclass(frozen=True, slots=True)
class WheelItem:
    """A release's wheel: the file here, its SHA-256, and its key in the mailbox."""

    path: Path
    sha256: str
    key: str


@dataclass(frozen=True, slots=True)
class Order:
    """One release, ready to be given to a target.

    `objects` are mailbox keys and contents in the order in which they must be written; `spec` is the user's side's
    own record, without secrets; `api_key` stays on the user's side.
    """

    release: str
    port: int
    api_key: str
    spec: bytes
    objects: tuple[tuple[str, bytes], ...]
    wheel: WheelItem | None = None  # on a machine that installs it


def render(
    spec: DeploymentSpec,
    engine: EngineOptions,
    predicted: Predicted,
    *,
    release: str,
    api_key: str,
    others: Sequence[ApiKey] = (),
    wheel: WheelItem | None = None,
    names: tuple[str, ...] = (),
    source: str | None = None,
) -> Order:
    """`current.json` is the last object: a machine that sees it finds everything that it names.

    `others`: the keys beside `api_key`, which a new release leaves as they are. For a machine that is not this one:
    the `wheel` that it installs, the `names` of its certificate, and the model's `source` where that is a folder there.
    """
    deployment = deployment_for(spec, engine, predicted, release=release, names=names, source=source)
    objects = [(KEYS, keys_object(api_key, others)), (release_key(release), encode(deployment))]
    if spec.hub_token is not None:
        objects.insert(0, (HUB_SECRET, hub_object(spec.hub_token.get_secret_value())))
    if wheel is None:
        current = Current(release=release, deployment=release_key(release))
    else:
        current = Current(
            release=release,
            deployment=release_key(release),
            wheel=wheel.key,
            sha256=wheel.sha256,
            index_url=spec.pip_index,
        )
    objects.append((LIFE, encode(Life(idle_stop_s=spec.idle_stop_seconds))))
    objects.append((CURRENT, encode(current)))
    return Order(release, spec.port, api_key, stored_spec(spec), tuple(objects), wheel)


def deployment_for(
    spec: DeploymentSpec,
    engine: EngineOptions,
    predicted: Predicted,
    *,
    release: str,
    names: tuple[str, ...] = (),
    source: str | None = None,
) -> Deployment:
    """`deployment.json` of one release. `names`: addresses and host names that the certificate must cover. `source`:
    where the machine finds the model, in place of the spec's."""
    away = spec.cloud != "local"
    setup = Setup(
        egress=spec.egress or "internet",
        pip_index=spec.pip_index,
        proxy=spec.proxy,
        constraints=spec.constraints,
        weights_disk=spec.weights_disk_gib is not None,
    )
    return Deployment(
        name=spec.name,
        release=release,
        target=spec.cloud,
        model=ModelSource(source=source or spec.model, served_name=spec.api_model_name, hub_endpoint=spec.hub_endpoint),
        engine=engine,
        listen=Listen(host=ANY_HOST if away else Listen().host, port=spec.port, tls=spec.tls, names=names),
        predicted=predicted,
        setup=setup if away else None,
        request_log=spec.request_log,
    )


def keys_object(api_key: str, others: Sequence[ApiKey] = ()) -> bytes:
    """`keys.json`: digests only; deployctl's own key first."""
    return encode([ApiKey(name=DEFAULT_KEY, sha256=digest(api_key)), *others])


def hub_object(token: str) -> bytes:
    """`secrets/hub.json`."""
    return json.dumps({"token": token}).encode()


def stored_spec(spec: DeploymentSpec) -> bytes:
    """The spec as the user's side keeps it: values that differ from the defaults, no secret."""
    return json.dumps(spec.public_values(), indent=2, ensure_ascii=False).encode() + b"\n"


def absolute(spec: DeploymentSpec, folder: Path | None = None) -> DeploymentSpec:
    """The spec with a model folder and a wheel as absolute paths: machine and user do not share a working folder.

    `folder` is what a relative path starts from, by default the current one.
    """
    changed = {"model": spec.model} if spec.model_ref.kind == "folder" else {}
    if spec.runtime_wheel is not None:
        changed["runtime_wheel"] = spec.runtime_wheel
    start = folder or Path.cwd()
    found = {name: os.path.abspath(start / Path(path).expanduser()) for name, path in changed.items()}
    return spec.model_copy(update=found)


@dataclass(frozen=True, slots=True)
class Change:
    """One field that a redeploy changes, as text; "(default)" where a side does not set it."""

    field: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.field}: {self.old} → {self.new}"


def changes(old: DeploymentSpec, new: DeploymentSpec) -> list[Change]:
    """What differs between two specs, by the order of the fields; secrets never show."""
    before, after = old.public_values(), new.public_values()
    found = []
    for field in DeploymentSpec.model_fields:
        if before.get(field) != after.get(field):
            found.append(Change(field, _text(before, field), _text(after, field)))
    return found


def _text(values: dict[str, object], field: str) -> str:
    if field not in values:
        return "(default)"
    value = values[field]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
