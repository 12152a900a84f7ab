"""`deployment.json`: what a machine is told to serve. Written by `provision`, read by agent, server and engine.

It holds no secret: API keys travel as SHA-256 in `keys.json`, hub tokens in `secrets/hub.json`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import msgspec

SCHEMA = 1
DEFAULT_PORT = 8000
HOLD_MAX_S = 120.0


RequestLogMode = Literal["off", "redacted", "full"]


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of everything that crosses a wall as JSON: frozen, and an unknown field is an error."""


class Note(Struct, frozen=True, forbid_unknown_fields=False):
    """Base of what another version may read or have written, and may leave a part of: reports, and the envelope of an
    order. What must be honoured belongs into `Deployment`, which its reader understands as a whole."""


class ModelSource(Struct, frozen=True):
    """Where the weights come from. `source` is the spec's form: `hf:org/name@rev`, `demo`, `/a/folder`, …"""

    source: str
    served_name: str
    hub_endpoint: str | None = None


class EngineOptions(Struct, frozen=True):
    """What the plan decided for the engine. `None` = the engine measures and chooses."""

    dtype: str  # "float32", "bfloat16", "float16"
    device: str  # "cpu" or "cuda"
    max_model_len: int  # tokens, prompt + output of one request
    max_num_seqs: int  # requests that run at once
    tensor_parallel: int = 1
    quantization: str | None = None
    gpu_memory_utilization: float = 0.92
    kv_cache_bytes: int | None = None
    max_batched_tokens: int | None = None  # token budget of one step
    block_size: int = 16  # tokens per KV block
    prefix_cache: bool = True
    rope_scaling: dict[str, str | float | int] | None = None
    num_threads: int | None = None  # CPU threads; None = all cores


class Predicted(Struct, frozen=True):
    """The plan's numbers, logged beside the measured ones."""

    weights_bytes: int
    kv_bytes_per_token: int
    kv_blocks: int
    activation_bytes: int


class Listen(Struct, frozen=True):
    """Where the server listens, and what a certificate must name. `names`: addresses and host names, known before boot.

    `tls`: "off"; "pinned" = the machine makes its own certificate and publishes it; "own" = from `secrets/tls.json`;
    "acme" = from a public authority for `names`.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    tls: Literal["off", "pinned", "own", "acme"] = "off"
    names: tuple[str, ...] = ()


class Setup(Struct, frozen=True):
    """How a machine of a cloud is set up. `egress`: "internet", or what an intranet deployment chose.

    `pip_index` and `proxy` are URLs; None = the distribution's defaults. `constraints`: versions that pip keeps to, as
    "torch==2.11.0".
    """

    egress: Literal["internet", "nat", "bundle", "none"] = "internet"
    pip_index: str | None = None
    proxy: str | None = None
    constraints: tuple[str, ...] = ()
    weights_disk: bool = False  # a disk of its own, tagged for the weights, is attached


class Deployment(Struct, frozen=True):
    """One release of one deployment."""

    name: str
    release: str
    target: str  # "local", "host", "aws", "alicloud"
    model: ModelSource
    engine: EngineOptions
    listen: Listen
    predicted: Predicted | None = None
    setup: Setup | None = None  # None on local
    hold_max_s: float = HOLD_MAX_S  # how long a request may wait while this release takes over
    drain_max_s: float = 60.0  # how long requests may go on once another release has taken over
    request_log: RequestLogMode = "off"
    schema: int = SCHEMA


class ApiKey(Struct, frozen=True):
    """One entry of `keys.json`. `sha256` is the hex digest of the key's UTF-8 bytes.

    `rpm`, `tpm`: requests and tokens (prompt and output) per minute; None = no limit. `expires_at`: seconds since the
    epoch from which it is refused, for a key that was rotated; two entries may then have one name.
    """

    name: str
    sha256: str
    rpm: Annotated[int, msgspec.Meta(ge=1)] | None = None
    tpm: Annotated[int, msgspec.Meta(ge=1)] | None = None
    expires_at: int | None = None


class Weights(Note, frozen=True):
    """`weights.json` in a release folder: where the agent put the model. `revision` is the resolved commit."""

    path: str
    revision: str | None = None


def encode(value: Struct | list[ApiKey]) -> bytes:
    """Readable JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def decode_deployment(data: bytes) -> Deployment:
    """Raises msgspec.ValidationError with the path of the first wrong field."""
    return msgspec.json.decode(data, type=Deployment)


def decode_known(data: bytes) -> Deployment:
    """What this version knows of a `deployment.json` that may be of another one. Raises msgspec.DecodeError."""
    return msgspec.convert(_known(msgspec.json.decode(data), Deployment), Deployment)


def _known(value: Any, kind: type[Struct]) -> Any:
    if not isinstance(value, dict):
        return value
    inner = {field.name: _struct_in(field.type) for field in msgspec.structs.fields(kind)}
    return {
        name: item if (of := inner[name]) is None else _known(item, of) for name, item in value.items() if name in inner
    }


def _struct_in(annotation: Any) -> type[Struct] | None:
    """`Setup` of `Setup | None`; None for what is no Struct."""
    kinds = get_args(annotation) or (annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Struct)), None)


def decode_keys(data: bytes) -> list[ApiKey]:
    return msgspec.json.decode(data, type=list[ApiKey])


def decode_weights(data: bytes) -> Weights:
    return msgspec.json.decode(data, type=Weights)
