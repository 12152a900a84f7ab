"""Another version of deployctl on the user's own machine: a release's wheel, unpacked beside the installed packages.

wheels/<sha256[:12]>/           the wheel's content, its SHA-256 checked
releases/<id>/site -> …         what server and engine of that release find before the installed packages

What the wheel needs must be installed here: `check_imports` says what is not. Supervisor and agent stay those that
`up` has started.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from runtime.agent.process import PACKAGES, packages_before
from runtime.agent.releases import Release
from runtime.agent.status import PhaseError
from runtime.mailbox import Current, Mailbox

IMPORT_TIMEOUT_S = 300.0  # torch from a cold disk
_CHECK = "import runtime.server.app, runtime.server.main, runtime.engine.main"


def install(mailbox: Mailbox, wanted: Current, release: Release, state: Path) -> None:
    """Unpacks the wheel that the release brings, and tries its imports. Safe to repeat. Raises PhaseError."""
    if wanted.wheel is None:
        return
    digest = wanted.sha256 or ""
    folder = state / "wheels" / digest[:12]
    if not folder.is_dir():
        _unpack(_fetch(mailbox, wanted.wheel, digest), folder)
    link = release.folder / PACKAGES
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(folder, release.folder))
        try:
            check_imports(release)
        except PhaseError:
            link.unlink()  # it is tried again when the release is
            raise
    prune(state)


def prune(state: Path) -> None:
    """Removes what no release runs on any more."""
    used = {path.resolve() for path in state.glob(f"releases/*/{PACKAGES}")}
    for folder in state.glob("wheels/*"):
        if folder.resolve() not in used:
            shutil.rmtree(folder, ignore_errors=True)


def check_imports(release: Release) -> None:
    """Server and engine of the release can be imported with what is installed here. Raises PhaseError."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHECK],
            env={**os.environ, **packages_before(release.folder)},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=IMPORT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PhaseError(
            f"the new version's imports take longer than {IMPORT_TIMEOUT_S:g} s", "try it again", retry=False
        ) from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise PhaseError(
            f"the new version cannot be imported here: {last}",
            "install what it needs beside this deployctl, with pip install 'deployctl[runtime]' of that version",
            retry=False,
        )


def _fetch(mailbox: Mailbox, key: str, digest: str) -> bytes:
    data = mailbox.get(key)
    if data is None:
        raise PhaseError(f"{key} is missing from the mailbox", "run `deployctl redeploy` again", retry=False)
    if (found := hashlib.sha256(data).hexdigest()) != digest:
        raise PhaseError(
            f"{key} has SHA-256 {found[:12]}…, release/current.json says {digest[:12]}…",
            "run `deployctl redeploy` again",
            retry=False,
        )
    return data


def _unpack(data: bytes, folder: Path) -> None:
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            archive.extractall(scratch)
        os.replace(scratch, folder)
    except zipfile.BadZipFile as error:
        raise PhaseError(f"the wheel cannot be read: {error}", "choose another wheel", retry=False) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
