"""A wheel that deployctl takes for its own runtime, for tests that only move it."""

from __future__ import annotations

from pathlib import Path

from provision.wheel import ENTRY, NAME, write_wheel

VERSION = "0.1.0"


def make_small_wheel(folder: Path, code: bytes = b"") -> Path:
    """`code`: what makes two wheels differ."""
    path = folder / f"{NAME}-{VERSION}-py3-none-any.whl"
    info = f"{NAME}-{VERSION}.dist-info"
    about = f"Metadata-Version: 2.4\nName: {NAME}\nVersion: {VERSION}\n".encode()
    write_wheel(path, {ENTRY: code, f"{info}/METADATA": about}, info)
    return path
