"""The engine as a process of its own, and the server's end of its socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from runtime.deployment import Deployment, EngineOptions, Listen, ModelSource, Weights, encode
from runtime.ipc import (
    Abort,
    FrameBuffer,
    Output,
    Outputs,
    Ready,
    Sampling,
    Submit,
    ToServer,
    decode_to_server,
    pack,
)

ROOT = Path(__file__).parents[3]
DEADLINE_S = 60


class Peer:
    """A server's end of the socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE_S)
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                assert time.monotonic() < deadline, "the engine does not listen"
                time.sleep(0.05)
        self._buffer = FrameBuffer()
        self._frames: list[ToServer] = []

    def send(self, *frames: Submit | Abort) -> None:
        self.socket.sendall(b"".join(pack(frame) for frame in frames))

    def next(self) -> ToServer:
        while not self._frames:
            data = self.socket.recv(1 << 16)
            if not data:
                raise ConnectionError("the engine closed the connection")
            self._frames = [decode_to_server(body) for body in self._buffer.feed(data)]
        return self._frames.pop(0)

    def until_ready(self) -> Ready:
        while not isinstance(frame := self.next(), Ready):
            pass
        return frame

    def outputs(self) -> Iterator[Output]:
        while True:
            if isinstance(frame := self.next(), Outputs):
                yield from frame.outputs

    def finish(self, request: str) -> tuple[list[int], Output]:
        """All tokens of `request` and its last output."""
        tokens: list[int] = []
        for output in self.outputs():
            if output.id == request:
                tokens += output.tokens
                if output.finish:
                    return tokens, output
        raise AssertionError


def write_release(folder: Path, model: Path, **options: object) -> Path:
    folder.mkdir(exist_ok=True)
    engine = msgspec.convert(
        {"dtype": "float32", "device": "cpu", "max_model_len": 256, "max_num_seqs": 4} | options, EngineOptions
    )
    deployment = Deployment(
        name="t", release="r1", target="local", model=ModelSource(source=str(model), served_name="m"),
        engine=engine, listen=Listen(),
    )  # fmt: skip
    (folder / "deployment.json").write_bytes(encode(deployment))
    (folder / "weights.json").write_bytes(encode(Weights(path=str(model))))
    return folder


def engine_argv(release: Path, run: Path) -> list[str]:
    code = "import sys, pathlib; from runtime.engine.main import run; sys.exit(run(*map(pathlib.Path, sys.argv[1:])))"
    return [sys.executable, "-c", code, str(release), str(run)]


def start(release: Path, run: Path) -> subprocess.Popen[str]:
    run.mkdir(exist_ok=True)
    return subprocess.Popen(
        engine_argv(release, run),
        cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def greedy(tokens: int, **options: object) -> Sampling:
    return msgspec.structs.replace(Sampling(max_tokens=tokens, temperature=0, ignore_eos=True), **options)
