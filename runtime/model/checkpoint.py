"""A Hugging Face checkpoint folder, read one tensor at a time: one safetensors file or a sharded index."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from runtime.model_spec import ModelSpec

# Buffers that old exporters wrote and that are computed here.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".attention.bias", ".masked_bias")
CPU = torch.device("cpu")
FP8 = "F8_E4M3"
ELEMENT_BYTES = {"F32": 4, "BF16": 2, "F16": 2, FP8: 1}


class CheckpointError(ValueError):
    """The folder does not hold what its config.json promises."""


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError when the file is missing or is not a JSON object."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value


def read_model_spec(folder: Path, rope_scaling: dict[str, Any] | None = None) -> ModelSpec:
    """ModelSpec of a folder's config.json. Raises CheckpointError or UnsupportedModelError."""
    generation = folder / "generation_config.json"
    return ModelSpec.from_config(
        read_json(folder / "config.json"),
        generation_config=read_json(generation) if generation.exists() else None,
        rope_scaling=rope_scaling,
    )


@dataclass(frozen=True, slots=True)
class Rows:
    """These rows of a tensor (its first dimension)."""

    span: range


@dataclass(frozen=True, slots=True)
class Columns:
    """These columns of a matrix."""

    span: range


Part = Rows | Columns


class Checkpoint:
    """Tensors by name. `take` reads one, or a part, onto `device`, checks its shape, and remembers that it was used.

    `on_bytes` is told the whole size of each tensor that is taken or left to another rank, for progress.
    """

    def __init__(self, folder: Path, device: torch.device = CPU) -> None:
        self.folder = folder
        self.device = device
        self.on_bytes: Callable[[int], None] | None = None
        self._file_of = _index(folder)
        self._open: dict[str, Any] = {}
        self._left = set(self._file_of)

    @property
    def files(self) -> list[Path]:
        """By name, which is about the order in which a model takes its tensors."""
        return [self.folder / name for name in sorted(set(self._file_of.values()))]

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, part: Part | None = None) -> Tensor:
        """The tensor of `shape` in `dtype`, or only `part` of it: no more than that is read.

        Raises CheckpointError when it is missing, has another shape, or is in fp8 where `dtype` is not or the other
        way round: fp8 numbers mean nothing without their scale.
        """
        stored = self._use(name)
        if tuple(stored.get_shape()) != shape:
            raise CheckpointError(
                f"{self._file_of[name]}: tensor {name} has shape {stored.get_shape()}, config.json says {list(shape)}"
            )
        if (stored.get_dtype() == FP8) != (dtype == torch.float8_e4m3fn):
            raise CheckpointError(
                f"{self._file_of[name]}: tensor {name} has dtype {stored.get_dtype()}, where "
                f"{'fp8' if dtype == torch.float8_e4m3fn else 'an unquantized one'} is needed"
            )
        match part:
            case Rows(span):
                tensor: Tensor = stored[span.start : span.stop]
            case Columns(span):
                tensor = stored[:, span.start : span.stop]
            case _:
                tensor = stored[:]
        # From the mapped file to the device, without a copy between. A view would keep it mapped, and die with it.
        return tensor.to(self.device, dtype, copy=True)

    def take_number(self, name: str) -> float:
        """A tensor of one element. Raises CheckpointError when it is missing or has more."""
        stored = self._use(name)
        if stored.get_shape() not in ([], [1]):
            raise CheckpointError(
                f"{self._file_of[name]}: tensor {name} has shape {stored.get_shape()}, where one number is needed"
            )
        return float(self._handle(self._file_of[name]).get_tensor(name))

    def is_fp8(self, name: str) -> bool:
        """False too where the tensor is missing."""
        file = self._file_of.get(name)
        return file is not None and self._handle(file).get_slice(name).get_dtype() == FP8

    def leave(self, name: str) -> None:
        """The tensor is another rank's to take. Raises CheckpointError when it is missing."""
        self._use(name)

    def close(self, *, ignore: tuple[str, ...] = ()) -> None:
        """Closes the files. Raises CheckpointError when a tensor was left: the model would not be what it claims."""
        self._open.clear()
        left = sorted(n for n in self._left if n not in ignore and not n.endswith(IGNORED_SUFFIXES))
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise CheckpointError(
                f"{self.folder}: tensors that this model has no place for: {', '.join(left[:3])}{more}"
            )

    def _use(self, name: str) -> Any:
        """The tensor in its file, not yet read."""
        file = self._file_of.get(name)
        if file is None:
            raise CheckpointError(f"{self.folder}: tensor {name} is missing")
        stored = self._handle(file).get_slice(name)
        width = ELEMENT_BYTES.get(stored.get_dtype())
        if width is None:
            raise CheckpointError(f"{file}: tensor {name} has dtype {stored.get_dtype()}, which is not supported")
        self._left.discard(name)
        if self.on_bytes is not None:
            self.on_bytes(math.prod(stored.get_shape()) * width)
        return stored

    def _handle(self, file: str) -> Any:
        if file not in self._open:
            self._open.clear()  # one file at a time: checkpoints are stored in layer order
            try:
                self._open[file] = safe_open(self.folder / file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{self.folder / file} cannot be read: {error}") from error
        return self._open[file]


def _index(folder: Path) -> dict[str, str]:
    """Tensor name → file name."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index} has no weight_map")
        for file in set(weight_map.values()):
            if Path(file).name != file:
                raise CheckpointError(f"{index} names a file outside its folder: {file}")
            if not (folder / file).exists():
                raise CheckpointError(f"{folder / file} is named by the index and missing")
        return dict(weight_map)
    single = folder / "model.safetensors"
    if not single.exists():
        raise CheckpointError(f"{folder}: neither model.safetensors nor model.safetensors.index.json is there")
    try:
        with safe_open(single, framework="pt") as file:
            return dict.fromkeys(file.keys(), single.name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{single} cannot be read: {error}") from error
