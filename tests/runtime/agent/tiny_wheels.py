"""Wheels of a few bytes, and a bundle of them in a mailbox: real pip and real environments without any index."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

from runtime.agent.bootstrap import BUNDLE, BUNDLE_INDEX
from runtime.mailbox import FolderMailbox


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    *,
    extras: Mapping[str, tuple[str, ...]] | None = None,
    files: Mapping[str, str] | None = None,
) -> Path:
    """`extras`: requirements by the name of the extra. Without `files` it holds one empty module."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    for extra, requirements in (extras or {}).items():
        metadata.append(f"Provides-Extra: {extra}")
        metadata += [f"Requires-Dist: {requirement} ; extra == '{extra}'" for requirement in requirements]
    contents = {
        **(files or {f"{module}/__init__.py": ""}),
        f"{info}/METADATA": "\n".join(metadata) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*contents, f"{info}/RECORD"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in {**contents, f"{info}/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(inner), text)
    return path


def make_runtime_wheel(folder: Path, version: str) -> Path:
    """Has the extras of deployctl, each with one tiny requirement."""
    extras = {"server": ("tiny-server",), "runtime": ("torch",), "s3": (), "oss": (), "modelscope": ("modelscope-hub",)}
    return make_wheel(folder, "deployctl", version, extras=extras)


def make_torch_wheel(folder: Path, version: str = "2.12.0", cuda: str | None = None) -> Path:
    return make_wheel(
        folder, "torch", version, files={"torch/__init__.py": "", "torch/version.py": f"cuda = {cuda!r}\n"}
    )


def push_bundle(mailbox: FolderMailbox, wheels: list[Path]) -> None:
    for wheel in wheels:
        mailbox.put(BUNDLE + wheel.name, wheel.read_bytes())
    index = {wheel.name: sha256(wheel) for wheel in wheels}
    mailbox.put(BUNDLE_INDEX, json.dumps(index).encode())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
