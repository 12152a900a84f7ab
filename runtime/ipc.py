"""Frames between server and engine: msgpack over a unix stream socket (private), 4-byte little-endian length.

The engine listens on `<run>/engine.sock` from its first moment, while weights load too, and serves one server at
a time: a new connection replaces the old one, whose requests are aborted. The server connects and connects again.

    server ► engine   Submit, Abort
    engine ► server   Hello (first frame), Progress (while loading), Ready, Outputs (one per step), Heartbeat, Gpus
"""

from __future__ import annotations

import struct
from typing import Literal, TypeVar

import msgspec

PROTOCOL = 3
SOCKET_NAME = "engine.sock"
MAX_FRAME = 64 * 2**20  # bytes
T = TypeVar("T")
_LENGTH = struct.Struct("<I")

FinishReason = Literal["stop", "length", "abort", "error"]


class Frame(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True, array_like=True):
    """Base of all frames; the tag is the class's name."""


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """How to choose the next token. `temperature` 0 is greedy. `top_k` 0 = off. `logit_bias`: (token id, added value).

    `logprobs`: how many of the most probable tokens to report beside the chosen one; None = no log-probabilities.
    `grammar`: what the output must match, in llguidance's form, validated by the server; None = anything.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    ignore_eos: bool = False
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    grammar: str | None = None

    @property
    def has_penalty(self) -> bool:
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1


class Submit(Frame, frozen=True):
    """A request whose prompt is tokenized. `salt` separates prefix caches (one per API key)."""

    id: str
    prompt: list[int]
    sampling: Sampling
    salt: bytes = b""


class Abort(Frame, frozen=True):
    """The client went away or a stop string was found: free the request's blocks. Unknown ids are fine."""

    id: str


class Hello(Frame, frozen=True):
    """First frame on every connection."""

    protocol: int
    pid: int
    release: str


class Progress(Frame, frozen=True):
    """How far loading is."""

    percent: float
    eta_s: float | None
    message: str


class Ready(Frame, frozen=True):
    """The engine takes requests. `kv_tokens` = what the KV pool holds; one request may use at most
    min(max_model_len, kv_tokens) tokens."""

    max_model_len: int
    vocab_size: int
    block_size: int
    kv_blocks: int
    max_num_seqs: int
    eos_token_ids: tuple[int, ...]


class TokenLogprobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Log-probability and rank (from 1) of one chosen token, and (token id, log-probability) of the most probable."""

    chosen: float
    rank: int
    top: tuple[tuple[int, float], ...]


class Output(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """New tokens of one request. The token that ended it (an end-of-sequence or stop id) is included and
    counted; `stopped_by_token` says that the last id must not be shown."""

    id: str
    tokens: list[int]
    finish: FinishReason | None = None
    stopped_by_token: bool = False
    cached_tokens: int = 0  # prompt tokens served by the prefix cache (first output only)
    error: str | None = None
    logprobs: list[TokenLogprobs] | None = None  # one for each token, where the request asked
    queued_s: float = 0.0  # seconds from arrival to the first step (first output only)


class Stats(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Gauges and running totals since the engine's start."""

    running: int
    waiting: int
    kv_usage: float  # 0…1
    preemptions: int
    prefix_queries: int  # tokens asked
    prefix_hits: int  # tokens found
    steps: int


class GpuUse(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """One GPU of the machine. `utilization`: 0…1 of the last moments; None where the driver does not tell."""

    index: int
    name: str
    memory_used: int  # bytes, of all processes
    memory_total: int
    utilization: float | None = None


class Gpus(Frame, frozen=True):
    """The machine's GPUs, every few seconds where there are any."""

    gpus: tuple[GpuUse, ...]


class Outputs(Frame, frozen=True):
    """What one step produced."""

    outputs: list[Output]
    stats: Stats


class Heartbeat(Frame, frozen=True):
    """At least one a second while idle, one per step else. With work pending, no frame for `hang_after_s` is a hang."""

    stats: Stats
    hang_after_s: float


ToEngine = Submit | Abort
ToServer = Hello | Progress | Ready | Outputs | Heartbeat | Gpus

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_to_server: msgspec.msgpack.Decoder[ToServer] = msgspec.msgpack.Decoder(ToServer)


class FrameError(ValueError):
    """The peer sent something that is not a frame of this protocol: close the connection."""


def pack(frame: Frame) -> bytes:
    """Length prefix + msgpack."""
    body = _encoder.encode(frame)
    return _LENGTH.pack(len(body)) + body


def decode_to_engine(body: bytes) -> ToEngine:
    return _decode(_to_engine, body)


def decode_to_server(body: bytes) -> ToServer:
    return _decode(_to_server, body)


def _decode(decoder: msgspec.msgpack.Decoder[T], body: bytes) -> T:
    try:
        frame: T = decoder.decode(body)
        return frame
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise FrameError(str(error)) from error


class FrameBuffer:
    """Cuts a byte stream into frame bodies.

    data:  |len|body....|len|bo
            ^ consumed by take()  ^ kept until the rest arrives
    """

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Returns the bodies that are complete now. Raises FrameError for an oversized frame."""
        self._data += data
        bodies: list[bytes] = []
        start = 0
        while len(self._data) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._data, start)
            if length > MAX_FRAME:
                raise FrameError(f"a frame of {length} bytes is over the limit of {MAX_FRAME}")
            end = start + _LENGTH.size + length
            if len(self._data) < end:
                break
            bodies.append(bytes(self._data[start + _LENGTH.size : end]))
            start = end
        del self._data[:start]
        return bodies
