"""deploy.lock around `up` and `redeploy`: read and held to before, written after."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli.output import say
from provision.errors import UsageError

if TYPE_CHECKING:
    from provision.cloud import CloudTarget
    from provision.host import HostTarget
    from provision.local import LocalTarget
    from provision.lock import Lock, Machine, Program
    from provision.spec import DeploymentSpec
    from runtime.mailbox import Built

LockOption = Annotated[
    Path | None,
    typer.Option(
        "--lock", help="Lock file. Default: deploy.lock beside the deploy.yaml that is read.", show_default=False
    ),
]
UpgradeFlag = Annotated[
    bool, typer.Option("--upgrade", help="Do not hold to the lock file: build the newest, and renew the file.")
]


@dataclass(slots=True)
class LockFile:
    """One run's lock file. `held` is None while there is none; `asked` is the spec before anything was filled in.

    `is_filled`: the spec comes from what was stored, where an earlier run has filled it in already.
    """

    path: Path
    held: Lock | None
    upgrade: bool
    is_filled: bool
    asked: DeploymentSpec | None = None

    def settle(self, asked: DeploymentSpec, old: DeploymentSpec | None, *, fresh: bool) -> DeploymentSpec:
        """What is to be built. `old`: what the deployment that exists was asked to be. `fresh`: a machine is made.

        Raises UsageError where the lock names another deployctl, SpecError and MissingPartError as `runtime_wheel`.
        """
        from provision import lock as locks
        from provision.model_commit import newest_commit

        held = self.held
        if held is not None and self.is_filled:
            asked = locks.opened(asked, held)
        self.asked = asked
        if held is None:
            return asked
        source, program = self.source(asked), program_of(asked)
        for item in locks.outdated(held, asked, source):
            say(f"{self.path.name} speaks of another {item.field}, and is renewed there: {item.old} → {item.new}")
        if not self.upgrade:
            if locks.is_other_program(held, program):
                raise other_program(self.path, held.deployctl, program)
            return locks.pinned(asked, held, old, source)
        newest = newest_commit(asked)
        found = locks.planned(held, program, newest, source, fresh=fresh)
        say(f"{self.path.name} is renewed:" if found else f"nothing newer than {self.path.name} is known")
        for item in found:
            say(f"  {item}")
        return locks.upgraded(asked, held, old, newest, source)

    def note(self, target: LocalTarget | HostTarget | CloudTarget) -> None:
        """Writes down what has been built. `target` is ready."""
        from provision import lock as locks

        built = built_of(target)
        if self.asked is None or built is None:
            say(f"  {self.path.name} stays as it is: the machine does not say what it runs on")
            return
        now = locks.Lock(
            version=1,
            deployctl=program_of(self.asked),
            machine=machine_of(target, built),
            model=locks.Model(source=self.source(self.asked), commit=built.model_commit),
            packages=locks.Packages(torch=built.torch, transformers=built.transformers),
        )
        kept, otherwise = locks.merged(self.held, now, upgrade=self.upgrade)
        for item in locks.differences(self.held, kept) if self.held is not None else ():
            say(f"  {self.path.name}: {item}")
        for item in otherwise:
            say(f"  not as {self.path.name} says: {item}; deployctl up --upgrade renews it")
        data = locks.encode_lock(kept)
        if not self.path.exists() or self.path.read_bytes() != data:
            try:
                write(self.path, data)
            except OSError as error:  # what was asked for is up all the same
                say(f"  {self.path} cannot be written: {error}")
                return
            say(f"  {self.path.name} says what was built; commit it, and the next `up` builds the same")

    def source(self, asked: DeploymentSpec) -> str:
        """The model; a folder as it is seen from the lock file, which others have elsewhere."""
        if asked.model_ref.kind != "folder":
            return asked.model
        return os.path.relpath(Path(asked.model).expanduser(), self.path.absolute().parent)


def open_lock(
    file: Path | None, lock: Path | None, *, upgrade: bool = False, is_filled: bool = False
) -> LockFile | None:
    """`file`: the spec file that is read; without one there is a lock only where `lock` names it. Raises UsageError."""
    from provision.lock import FILE, read_lock

    path = lock or (None if file is None else file.parent / FILE)
    if path is None:
        if upgrade:
            raise UsageError(
                "--upgrade is about a lock file, and there is none",
                why="deploy.lock stands beside a deploy.yaml",
                next_command="deployctl up --file deploy.yaml --upgrade, or --lock FILE",
            )
        return None
    held: Lock | None = None
    try:
        held = read_lock(path.read_bytes(), str(path))
    except FileNotFoundError:
        held = None
    except OSError as error:
        raise UsageError(f"{path} cannot be read", why=str(error)) from None
    except UsageError as error:
        if not upgrade:
            raise
        say(f"{error}; it is written anew")
    return LockFile(path, held, upgrade, is_filled)


def program_of(spec: DeploymentSpec) -> Program:
    """The deployctl that serves. Raises SpecError, MissingPartError."""
    from provision.cli.version import installed
    from provision.lock import UNKNOWN, Program
    from provision.wheel import runtime_wheel

    if spec.cloud == "local" and spec.runtime_wheel is None:
        return Program(version=installed("deployctl") or UNKNOWN)
    wheel = runtime_wheel(spec.runtime_wheel)
    return Program(version=wheel.file_name.split("-")[1], wheel=wheel.sha256)


def machine_of(target: LocalTarget | HostTarget | CloudTarget, built: Built) -> Machine:
    from provision.host import HostTarget
    from provision.local import LocalTarget
    from provision.lock import Machine

    if isinstance(target, LocalTarget | HostTarget):
        return Machine(cloud="local" if isinstance(target, LocalTarget) else "host", driver=built.driver)
    spec, exports = target.spec(), target.exports
    return Machine(
        cloud=spec.cloud if spec else "aws",
        region=exports.region,
        instance_type=exports.instance_type,
        image=exports.image,
        driver=built.driver,
    )


def built_of(target: LocalTarget | HostTarget | CloudTarget) -> Built | None:
    """What the release that serves runs on; None where the machine has not said it."""
    import msgspec

    from provision.host import HostTarget
    from provision.local import LocalTarget
    from runtime.bucket import BucketError
    from runtime.mailbox import BUILT, decode_built

    try:
        if isinstance(target, HostTarget):
            data = target.get(BUILT)
        else:
            data = (target.state if isinstance(target, LocalTarget) else target).mailbox.get(BUILT)
        built = None if data is None else decode_built(data)
    except (BucketError, msgspec.DecodeError) as error:
        say(f"  what the machine runs on cannot be read: {error}")
        return None
    return built if built is not None and built.release == target.observe().release else None


def other_program(path: Path, held: Program, found: Program) -> UsageError:
    """`pip install` finds a version again, not a checkout."""
    if held.version != found.version:
        why = f"{path.name} says {held.version}, this is {found.version}"
        return UsageError(
            "another deployctl has built what the lock file says",
            why=why,
            next_command=f"pip install deployctl=={held.version}, or deployctl up --upgrade",
        )
    return UsageError(
        "the machine would get another wheel than the lock file says",
        why=f"both are {found.version}; {path.name} says SHA-256 {(held.wheel or '')[:12]}…, this is "
        f"{(found.wheel or '')[:12]}…",
        next_command="deployctl up --upgrade, or check out what was deployed",
    )


def write(path: Path, data: bytes) -> None:
    """Old or new, never half; readable as any file of the project."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_bytes(data)
    os.replace(new, path)
