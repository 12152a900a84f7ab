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
from runtime.mailbox import CURRENT, HUB_SECRET, KEYS, Current, release_key

ANY_HOST = "0.0.0.0"


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


def render(
    spec: DeploymentSpec,
    engine: EngineOptions,
    predicted: Predicted,
    *,
    release: str,
    api_key: str,
    others: Sequence[ApiKey] = (),
) -> Order:
    """`current.json` is the last object: a machine that sees it finds everything that it names.

    `others`: the keys beside `api_key`, which a new release leaves as they are.
    """
    deployment = deployment_for(spec, engine, predicted, release=release)
    objects = [(KEYS, keys_object(api_key, others)), (release_key(release), encode(deployment))]
    if spec.hub_token is not None:
        objects.insert(0, (HUB_SECRET, hub_object(spec.hub_token.get_secret_value())))
    objects.append((CURRENT, encode(Current(release=release, deployment=release_key(release)))))
    return Order(release, spec.port, api_key, stored_spec(spec), tuple(objects))


def deployment_for(
    spec: DeploymentSpec,
    engine: EngineOptions,
    predicted: Predicted,
    *,
    release: str,
    names: tuple[str, ...] = (),
) -> Deployment:
    """`deployment.json` of one release. `names`: addresses and host names that the certificate must cover."""
    away = spec.cloud != "local"
    setup = Setup(
        egress=spec.egress or "internet",
        pip_index=spec.pip_index,
        proxy=spec.proxy,
        weights_disk=spec.weights_disk_gib is not None,
    )
    return Deployment(
        name=spec.name,
        release=release,
        target=spec.cloud,
        model=ModelSource(source=spec.model, served_name=spec.api_model_name, hub_endpoint=spec.hub_endpoint),
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
    """The spec with a model folder as an absolute path: machine and user do not share a working folder.

    `folder` is what a relative path starts from, by default the current one.
    """
    if spec.model_ref.kind != "folder":
        return spec
    path = Path(os.path.abspath((folder or Path.cwd()) / Path(spec.model).expanduser()))
    return spec.model_copy(update={"model": str(path)})


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
