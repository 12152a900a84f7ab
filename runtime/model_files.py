"""Which files of a repository serve a model, and the manifest that `deployctl weights push` leaves beside them."""

from __future__ import annotations

import msgspec

from runtime.deployment import Struct

MANIFEST = "deployctl-manifest.json"
PUSH_RECORD = "deployctl-push.json"  # what has arrived of a push that is under way
_SUFFIXES = (".safetensors", ".json", ".jinja")
_NAMES = ("tokenizer.model", "merges.txt", "vocab.txt")
_DUPLICATES = "consolidated"  # Mistral's second copy of the same weights


class UnservableError(Exception):
    """The files are no model that can be served. `hint`: what to do."""

    def __init__(self, error: str, hint: str) -> None:
        super().__init__(error)
        self.hint = hint


class ManifestFile(Struct, frozen=True):
    """`size` in bytes, `sha256` as hex. `blob`: the hub's own id of the content, where it lists no SHA-256."""

    name: str
    size: int
    sha256: str
    blob: str | None = None


class Manifest(Struct, frozen=True):
    """`deployctl-manifest.json`. `source`: where the files come from, `commit`: the hub's, if it has one."""

    source: str
    commit: str | None
    files: tuple[ManifestFile, ...]
    schema: int = 1


def decode_manifest(data: bytes) -> Manifest:
    """Raises msgspec.ValidationError."""
    return msgspec.json.decode(data, type=Manifest)


def choose_files(names: list[str], place: str = "the repository") -> list[str]:
    """The files that serving needs: no pickle, no code, nothing in a subfolder. Raises UnservableError."""
    chosen = [
        name
        for name in names
        if "/" not in name
        and (name.endswith(_SUFFIXES) or name in _NAMES)
        and not name.startswith((_DUPLICATES, "."))
        and name not in (MANIFEST, PUSH_RECORD)
    ]
    for need in ("config.json", "tokenizer.json"):
        if need not in chosen:
            raise UnservableError(f"{place} has no {need}", "choose a model in Hugging Face's layout")
    if not any(name.endswith(".safetensors") for name in chosen):
        raise UnservableError(
            f"{place} has no *.safetensors file", "pickle weights (.bin, .pt) are not read; choose another"
        )
    return chosen
