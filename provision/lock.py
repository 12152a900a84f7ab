"""deploy.lock: what the last `up` of a deploy.yaml has really built, so that the next one builds the same. Pure.

    version    of this format
    deployctl  {version, wheel}: wheel is the SHA-256 of what the machine installs
    machine    {cloud, region, instance_type, image, driver}
    model      {source, commit}: what the revision in `source` stood for
    packages   {torch, transformers}

null = not known, or not there. It holds no secret and is meant to be committed. The next `up` fills in with it what the
spec leaves open: image, the model's commit, the packages' versions. The driver comes with image or wheel.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Literal, TypeVar

import msgspec

from provision.errors import UsageError
from provision.render import Change, changes
from provision.spec import Cloud, DeploymentSpec
from runtime.deployment import Struct

FILE = "deploy.lock"
PACKAGES = ("torch", "transformers")
UNKNOWN = "unknown"
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Program(Struct, frozen=True):
    """`wheel`: SHA-256; None where the machine runs on the installation that ran `up`. `version` is "unknown" for a
    checkout that is not installed and sends no wheel."""

    version: str
    wheel: str | None = None


class Machine(Struct, frozen=True):
    """`instance_type` and `image` are a cloud's; `driver` is NVIDIA's version."""

    cloud: Cloud
    region: str | None = None
    instance_type: str | None = None
    image: str | None = None
    driver: str | None = None


class Model(Struct, frozen=True):
    """`source` as the spec has it, without the commit that the lock adds."""

    source: str
    commit: str | None = None


class Packages(Struct, frozen=True):
    """Versions on the machine, with pip's local part ("2.11.0+cu126")."""

    torch: str | None = None
    transformers: str | None = None


class Lock(Struct, frozen=True):
    """One deploy.lock."""

    version: Literal[1]
    deployctl: Program
    machine: Machine
    model: Model
    packages: Packages


P = TypeVar("P", Program, Machine, Model, Packages)


def read_lock(data: bytes, place: str) -> Lock:
    """`place`: the file, for errors. Raises UsageError with the path of the first wrong field."""
    try:
        return msgspec.json.decode(data, type=Lock)
    except msgspec.DecodeError as error:
        raise UsageError(
            f"{place} is no lock file that this version can read",
            why=str(error),
            next_command="restore it from git, or `deployctl up --upgrade`, which writes it anew",
        ) from None


def encode_lock(lock: Lock) -> bytes:
    """The same lock gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(lock), indent=2) + b"\n"


def pinned(asked: DeploymentSpec, lock: Lock, old: DeploymentSpec | None, source: str) -> DeploymentSpec:
    """The spec with what the lock says where the spec leaves it open. `old`: what a deployment that exists was asked to
    be; one that differs from `asked` in nothing stays as it is. `source`: the model as a lock would name it."""
    values: dict[str, object] = {}
    if is_same_place(lock, asked) and asked.is_cloud and asked.image is None and lock.machine.image is not None:
        values["image"] = lock.machine.image
    if lock.model.source == source and (model := at_commit(asked, lock.model.commit)) is not None:
        values["model"] = model
    if asked.cloud != "local" and asked.cloud == lock.machine.cloud:
        values["constraints"] = (*asked.constraints, *missing_constraints(asked, lock.packages))
    return asked if is_unchanged(old, asked) else asked.model_copy(update=values)


def opened(stored: DeploymentSpec, lock: Lock) -> DeploymentSpec:
    """The reverse, for a spec that was stored after an earlier run had filled it in."""
    values: dict[str, object] = {}
    if stored.image is not None and stored.image == lock.machine.image:
        values["image"] = None
    without = stored.model_copy(update={"model": lock.model.source})
    if stored.model == at_commit(without, lock.model.commit):
        values["model"] = lock.model.source
    ours = missing_constraints(stored.model_copy(update={"constraints": ()}), lock.packages)
    values["constraints"] = tuple(text for text in stored.constraints if text not in ours)
    return stored.model_copy(update=values)


def upgraded(
    asked: DeploymentSpec, lock: Lock, old: DeploymentSpec | None, newest: str | None, source: str
) -> DeploymentSpec:
    """The spec for `--upgrade`: nothing is filled in but the model's `newest` commit, where it is known. A deployment
    that exists and has that commit already stays as it is."""
    commit_stays = newest is None or (lock.model.source == source and lock.model.commit == newest)
    if commit_stays and is_unchanged(old, asked):
        return asked
    model = at_commit(asked, newest)
    return asked if model is None else asked.model_copy(update={"model": model})


def is_unchanged(old: DeploymentSpec | None, asked: DeploymentSpec) -> bool:
    """How one run of a command behaves (`wait`) is nothing that a deployment is."""
    return old is not None and not changes(old, asked.model_copy(update={"wait": old.wait}))


def at_commit(asked: DeploymentSpec, commit: str | None) -> str | None:
    """The model at a commit of its hub; None where it comes from elsewhere, or the commit is none of a hub."""
    ref = asked.model_ref
    if ref.kind not in ("hf", "modelscope") or commit is None or _COMMIT.fullmatch(commit) is None:
        return None
    return str(dataclasses.replace(ref, revision=commit))


def missing_constraints(asked: DeploymentSpec, packages: Packages) -> tuple[str, ...]:
    """Without pip's local part: which build of a version fits is decided on the machine, by its driver."""
    taken = {text.partition("==")[0].lower() for text in asked.constraints}
    found = ((name, getattr(packages, name)) for name in PACKAGES if name not in taken)
    return tuple(f"{name}=={version.partition('+')[0]}" for name, version in found if version is not None)


def is_same_place(lock: Lock, asked: DeploymentSpec) -> bool:
    """Whether the lock's machine is one that the spec asks for."""
    machine = lock.machine
    if (machine.cloud, machine.region) != (asked.cloud, asked.region):
        return False
    return not asked.instance_type or machine.instance_type in (None, *asked.instance_type)


def is_other_program(lock: Lock, program: Program) -> bool:
    """Whether this deployctl is not the one that the lock names: by its wheel where both are known, else by version."""
    held = lock.deployctl
    if held.wheel is not None and program.wheel is not None:
        return held.wheel != program.wheel
    return held.version != program.version and UNKNOWN not in (held.version, program.version)


def outdated(lock: Lock, asked: DeploymentSpec, source: str) -> list[Change]:
    """Parts of the lock that speak of something else than what is asked for: they do not count, and are renewed."""
    found = []
    if lock.model.source != source:
        found.append(Change("model", lock.model.source, source))
    if not is_same_place(lock, asked):
        wanted = " ".join(text for text in (asked.cloud, asked.region, ", ".join(asked.instance_type)) if text)
        machine = lock.machine
        held = " ".join(text for text in (machine.cloud, machine.region, machine.instance_type) if text)
        found.append(Change("machine", held, wanted))
    return found


def planned(lock: Lock, program: Program, newest: str | None, source: str, *, fresh: bool) -> list[Change]:
    """What `--upgrade` will change, as far as it can be known before anything is made. `fresh`: a machine is made; one
    that exists keeps image, driver and packages."""
    found = _differences("deployctl", lock.deployctl, program)
    if lock.model.source == source and lock.model.commit is not None and newest != lock.model.commit:
        hub = _COMMIT.fullmatch(lock.model.commit) is not None
        if newest is not None or hub:
            found.append(Change("model.commit", lock.model.commit, newest or f"the hub's newest ({UNKNOWN} here)"))
    if fresh and lock.machine.image is not None:
        found.append(Change("machine.image", lock.machine.image, "the newest when the machine is made"))
    if fresh and lock.machine.cloud != "local" and lock.packages.torch is not None:
        found.append(Change("packages.torch", lock.packages.torch, "the newest that this version runs on"))
    return found


def merged(old: Lock | None, built: Lock, *, upgrade: bool) -> tuple[Lock, list[Change]]:
    """The lock to keep, and where what was built differs from it.

    A part that speaks of another model or place is taken from `built`, with `upgrade` all of it. Else the lock stays
    what it is; only what it did not know is added.
    """
    if old is None:
        return built, []
    program, packages, machine, model = old.deployctl, old.packages, old.machine, old.model
    there = (machine.cloud, machine.region, machine.instance_type)
    if upgrade or there != (built.machine.cloud, built.machine.region, built.machine.instance_type):
        machine = built.machine
    if upgrade or old.machine.cloud != built.machine.cloud:
        program, packages = built.deployctl, built.packages
    if upgrade or model.source != built.model.source:
        model = built.model
    kept = Lock(
        version=1,
        deployctl=_filled(program, built.deployctl),
        machine=_filled(machine, built.machine),
        model=_filled(model, built.model),
        packages=_filled(packages, built.packages),
    )
    return kept, [change for change in differences(kept, built) if change.new != UNKNOWN]


def differences(old: Lock, new: Lock) -> list[Change]:
    """Field by field, as "packages.torch: 2.11.0 → 2.12.0"."""
    return [
        *_differences("deployctl", old.deployctl, new.deployctl),
        *_differences("machine", old.machine, new.machine),
        *_differences("model", old.model, new.model),
        *_differences("packages", old.packages, new.packages),
    ]


def _differences(part: str, old: Struct, new: Struct) -> list[Change]:
    pairs = ((name, getattr(old, name), getattr(new, name)) for name in old.__struct_fields__)
    return [Change(f"{part}.{name}", a or UNKNOWN, b or UNKNOWN) for name, a, b in pairs if a != b]


def _filled(known: P, found: P) -> P:
    """`known`, with what it does not know from `found`."""
    gaps = {name: getattr(found, name) for name in known.__struct_fields__ if getattr(known, name) is None}
    return msgspec.structs.replace(known, **gaps)
