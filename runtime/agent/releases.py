"""Releases on the machine: one folder each, and the symlink `current` to the one that is served.

machine/releases/<id>/deployment.json   what to serve
                     /weights.json      where the weights phase put the model
                     /ready             this release has served: a rollback may go back to it
                     /failed.json       it failed and will not be tried again by itself
                     /venv -> ../../venvs/…   on a VM: what it runs on
                     /site -> ../../wheels/…  on `local`: what goes before the installed packages
                     /compiler          on a VM: it was tried to install one
machine/current -> releases/<id>
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from runtime.agent.files import PRIVATE, Access
from runtime.deployment import Deployment, Note, Weights, decode_deployment, decode_known, decode_weights, encode
from runtime.mailbox import Current, Mailbox, Phase, ReleaseEntry

KEEP = 3
WHEEL_LINKS = ("site", "venv")  # to a folder that is named after the wheel
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ReleaseError(ValueError):
    """The mailbox asks for a release that is missing, broken or badly named."""


class UnreadableError(ReleaseError):
    """The release is there, but its deployment.json is of another version of deployctl."""


class Failure(Note, frozen=True):
    """Why a release was given up. `phase` is where."""

    phase: Phase
    error: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """One installed release. `folder` holds its files."""

    id: str
    folder: Path
    deployment: Deployment
    access: Access = PRIVATE

    @property
    def proven(self) -> bool:
        return (self.folder / "ready").exists()

    @property
    def ready_at(self) -> float:
        """When it became ready last, in seconds since the epoch; 0 = never."""
        try:
            return (self.folder / "ready").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def weights(self) -> Weights | None:
        data = _read(self.folder / "weights.json")
        return None if data is None else decode_weights(data)

    def failure(self) -> Failure | None:
        data = _read(self.folder / "failed.json")
        return None if data is None else msgspec.json.decode(data, type=Failure)

    def put_weights(self, weights: Weights) -> None:
        self.access.write(self.folder / "weights.json", encode(weights))

    def mark_ready(self) -> None:
        """The file's time says which release served last."""
        self.access.write(self.folder / "ready", b"")

    def mark_failed(self, failure: Failure) -> None:
        self.access.write(self.folder / "failed.json", encode(failure))


class Releases:
    """The folder `releases/` and the link `current` of one machine folder."""

    def __init__(self, state: Path, access: Access = PRIVATE) -> None:
        self.root = state / "releases"
        self.link = state / "current"
        self._access = access

    def install(self, mailbox: Mailbox, current: Current) -> Release:
        """Copies the release's `deployment.json` from the mailbox. Safe to repeat. Raises ReleaseError, and
        UnreadableError before anything is written."""
        if not _ID.fullmatch(current.release):
            raise ReleaseError(f"release id {current.release!r} is not a plain name")
        data = mailbox.get(current.deployment)
        if data is None:
            raise ReleaseError(f"release {current.release}: {current.deployment} is missing from the mailbox")
        try:
            deployment = decode_deployment(data)
        except msgspec.DecodeError as error:
            raise UnreadableError(f"release {current.release}: {current.deployment}: {error}") from error
        folder = self.root / current.release
        if _read(folder / "deployment.json") != data:
            self._access.write(folder / "deployment.json", data)
        return Release(current.release, folder, deployment, self._access)

    def current(self) -> Release | None:
        """The release that `current` points to, or None before the first."""
        try:
            folder = self.root / os.readlink(self.link).rpartition("/")[2]
        except FileNotFoundError:
            return None
        return self._open(folder)

    def switch(self, release: Release) -> None:
        """Points `current` at `release` in one atomic step."""
        new = self.link.with_name(f".{self.link.name}.{os.getpid()}")
        new.unlink(missing_ok=True)
        os.symlink(f"{self.root.name}/{release.id}", new)
        os.replace(new, self.link)

    def seed(self, mailbox: Mailbox, current: Current) -> None:
        """Before anything runs: gives the server a release to start with, and failed ones a new chance."""
        self.forgive()
        release = self.install(mailbox, current)
        if self.current() is None:
            self.switch(release)

    def forgive(self) -> None:
        """Releases that failed may be tried again."""
        for mark in self.root.glob("*/failed.json"):
            mark.unlink(missing_ok=True)

    def last_proven(self, besides: str) -> Release | None:
        """The release that served last, other than `besides` and not given up since."""
        marks = sorted(self.root.glob("*/ready"), key=lambda mark: mark.stat().st_mtime_ns, reverse=True)
        folders = (mark.parent for mark in marks if mark.parent.name != besides)
        folder = next((f for f in folders if not (f / "failed.json").exists()), None)
        return None if folder is None else self._open(folder)

    def entries(self, serving: str | None) -> list[ReleaseEntry]:
        """All that are kept, newest first. `serving`: the one that answers now."""
        folders = sorted((p for p in self.root.glob("*") if p.is_dir()), key=_age_key, reverse=True)
        return [_entry(release, serving) for folder in folders if (release := self._open(folder)) is not None]

    def prune(self, keep: int = KEEP) -> None:
        """Removes all but the newest `keep` releases; the current one always stays."""
        serving = self.current()
        folders = sorted((p for p in self.root.iterdir() if p.is_dir()), key=_age_key, reverse=True)
        for folder in folders[keep:]:
            if serving is None or folder.name != serving.id:
                shutil.rmtree(folder)

    def _open(self, folder: Path) -> Release | None:
        """A release of a newer version, after the way back to an older one, is known as far as this one can read it."""
        data = _read(folder / "deployment.json")
        try:
            return None if data is None else Release(folder.name, folder, decode_known(data), self._access)
        except msgspec.DecodeError:
            return None


def _entry(release: Release, serving: str | None) -> ReleaseEntry:
    failure, engine = release.failure(), release.deployment.engine
    state: Literal["serving", "ready", "failed", "new"] = "ready" if release.proven else "new"
    if failure is not None:
        state = "failed"
    if release.id == serving:
        state = "serving"
    return ReleaseEntry(
        release=release.id,
        state=state,
        model=release.deployment.model.source,
        max_model_len=engine.max_model_len,
        dtype=engine.dtype,
        quantization=engine.quantization,
        wheel=next((path.resolve().name for path in map(release.folder.joinpath, WHEEL_LINKS) if path.exists()), None),
        ready_at=release.ready_at or None,
        error=None if failure is None or state == "serving" else failure.error,
    )


def _age_key(folder: Path) -> int:
    try:
        return (folder / "deployment.json").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
