"""Models that lie on this machine, for a host: uploaded file by file, from where an earlier upload was cut."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from provision.errors import FailedError, PlanError
from provision.local import check_parts
from provision.spec import DeploymentSpec
from provision.state import cache_root
from runtime.vm import STATE_DIR

if TYPE_CHECKING:
    from provision.host import HostTarget

SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja")  # of Hugging Face's layout; never pickled weights


def local_folder(spec: DeploymentSpec) -> Path | None:
    """The folder to upload; None for a model that the host fetches itself. Converts the demo model, once.

    Raises MissingPartError, FailedError, PlanError.
    """
    if spec.model_ref.kind == "folder":
        folder = Path(spec.model).expanduser()
        if not (folder / "config.json").is_file():
            raise PlanError(f"{folder} has no config.json", why="a model's folder in Hugging Face's layout is uploaded")
        return folder
    return demo_folder() if spec.model_ref.kind == "demo" else None


def demo_folder() -> Path:
    """The converted demo model of this user's cache."""
    models = cache_root() / "models"
    found = sorted(models.glob("demo-*/config.json"), key=lambda path: path.stat().st_mtime)
    if found:
        return found[-1].parent
    check_parts("demo")
    folder = models / "demo-for-hosts"
    done = subprocess.run(
        [sys.executable, "-m", "runtime.demo_model", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise FailedError("the demo model could not be converted", why=done.stderr.strip()[-400:] or None)
    return folder


def files_of(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in SUFFIXES)


def remote_folder(folder: Path) -> str:
    """Where it lies on the host: another content is another folder, so that a rollback finds the old one."""
    digest = hashlib.sha256()
    for path in files_of(folder):
        facts = path.stat()
        digest.update(f"{path.name}\n{facts.st_size}\n{facts.st_mtime_ns}\n".encode())
    return f"{STATE_DIR}/models/{folder.name}-{digest.hexdigest()[:12]}"


def upload_model(target: HostTarget, folder: Path) -> str:
    """Brings the model over; returns its folder there. Raises ConnectionFailedError (call it again), DiskFullError."""
    there = remote_folder(folder)
    files = list(files_of(folder))
    total = sum(path.stat().st_size for path in files)
    target.report(f"  uploading {folder} ({total / 2**30:.2f} GiB, {len(files)} files)")
    for path in files:
        target.upload(path, f"{there}/{path.name}")
    return there
