"""Names of models: `hf:org/name@rev`, `modelscope:`, `s3://`, `oss://`, a local folder, `demo`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["hf", "modelscope", "s3", "oss", "folder", "demo"]

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_REVISION = re.compile(r"^[\w./-]+$")
_BUCKET = re.compile(r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Where weights come from. `location` is org/name, bucket/prefix, a path as written, or "demo"."""

    kind: Kind
    location: str
    revision: str | None = None

    def __str__(self) -> str:
        if self.kind in ("demo", "folder"):
            return self.location
        if self.kind in ("s3", "oss"):
            return f"{self.kind}://{self.location}"
        return f"{self.kind}:{self.location}" + (f"@{self.revision}" if self.revision else "")

    @property
    def short_name(self) -> str:
        """Default name in the API: org/name for hub models, else the last part of the path."""
        if self.kind in ("hf", "modelscope"):
            return self.location
        return self.location.rstrip("/").rsplit("/", 1)[-1] or "model"


def is_bare(text: str) -> bool:
    """org/name or org/name@revision, without the name of a hub."""
    return _HUB_ID.match(text.strip().partition("@")[0]) is not None


def parse_model(text: str) -> ModelRef:
    """Raises ValueError with the forms that are understood."""
    text = text.strip()
    if text == "demo":
        return ModelRef("demo", "demo")
    if text.startswith(("/", "./", "../", "~")) or text in (".", ".."):
        return ModelRef("folder", text)
    if text.startswith("s3://"):
        return ModelRef("s3", _bucket(text, "s3://"))
    if text.startswith("oss://"):
        return ModelRef("oss", _bucket(text, "oss://"))
    if text.startswith("modelscope:"):
        return _hub("modelscope", text.removeprefix("modelscope:"))
    return _hub("hf", text.removeprefix("hf:"))


def _bucket(text: str, scheme: str) -> str:
    location = text.removeprefix(scheme).rstrip("/")
    if not _BUCKET.match(location):
        raise ValueError(f"{text!r} must be {scheme}bucket/prefix")
    return location


def _hub(kind: Literal["hf", "modelscope"], text: str) -> ModelRef:
    location, _, revision = text.partition("@")
    if not _HUB_ID.match(location) or ("@" in text and not _REVISION.match(revision)):
        raise ValueError(
            f"{text!r} is not a model: write org/name[@revision], modelscope:org/name, s3://bucket/prefix, "
            "oss://bucket/prefix, ./a/folder or demo"
        )
    return ModelRef(kind, location, revision or None)
