"""What a model answered first: 32 greedy token ids per model commit, dtype, quantization, device and tensor-parallel
size, kept in `fingerprints.json` of the machine folder.

The same numbers on the same machine give the same ids. Others mean that something else has changed than what was asked
for: the weights, a kernel, the driver.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runtime.agent.files import Access
from runtime.deployment import Deployment, Struct, Weights

NAME = "fingerprints.json"


class Fingerprint(Struct, frozen=True):
    """`recorded_at`: seconds since the epoch, when `release` was ready."""

    tokens: tuple[int, ...]
    release: str
    recorded_at: float


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """The ones of one machine folder."""

    state: Path
    access: Access

    def compare(self, deployment: Deployment, weights: Weights | None, tokens: tuple[int, ...]) -> str | None:
        """Records the first answer of its kind; None when later ones are the same, else a warning."""
        known = self._read()
        name = name_of(deployment, weights)
        first = known.get(name)
        if first is None:
            known[name] = Fingerprint(tokens=tokens, release=deployment.release, recorded_at=time.time())
            self.access.write(self.state / NAME, msgspec.json.encode(known))
            return None
        at = difference(first.tokens, tokens)
        if at is None:
            return None
        return (
            f"the model does not answer as it did in release {first.release}: of {len(first.tokens)} greedy tokens "
            f"those from number {at + 1} on are others, with the same weights, dtype and quantization; "
            "compare its answers, and `deployctl rollback` goes back"
        )

    def _read(self) -> dict[str, Fingerprint]:
        try:
            return msgspec.json.decode((self.state / NAME).read_bytes(), type=dict[str, Fingerprint])
        except (FileNotFoundError, msgspec.DecodeError):
            return {}


def name_of(deployment: Deployment, weights: Weights | None) -> str:
    """ "hf:org/name@abc float32 - cpu tp1 32": everything that may change the numbers by intention."""
    engine = deployment.engine
    commit = (weights.revision or weights.path) if weights is not None else ""
    return " ".join(
        [
            f"{deployment.model.source}@{commit}",
            engine.dtype,
            engine.quantization or "-",
            engine.device,
            f"tp{engine.tensor_parallel}",
        ]
    )


def difference(first: tuple[int, ...], second: tuple[int, ...]) -> int | None:
    """Index of the first token that differs; None when the shorter one begins the longer one: a short context cuts."""
    return next((at for at, (one, other) in enumerate(zip(first, second, strict=False)) if one != other), None)
