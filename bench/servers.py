"""The endpoints: how each is started, how long it takes to its first token, what memory it needs, and how it ends."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench.machine import peak_bytes
from runtime.deployment import (
    ApiKey,
    Deployment,
    EngineOptions,
    Listen,
    ModelSource,
    Weights,
    encode,
)

HOST = "127.0.0.1"
MODEL = "demo"  # the name that all serve it under
MAX_MODEL_LEN = 2048  # tokens
MAX_SEQS = 32
KV_GIB = 1  # for each of four servers, and three times what 32 requests of 192 tokens need
START_TIMEOUT_S = 600.0  # vLLM compiles for minutes on two cores
STOP_GRACE_S = 20.0


class BenchError(Exception):
    """The bench cannot go on; the message says why and what to do."""


@dataclass(slots=True)
class Endpoint:
    """One server under test. `commands` run together; `first_token_s` is set by `start`."""

    name: str
    commands: list[list[str]]
    environment: dict[str, str]
    port: int
    key: str
    log: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    first_token_s: float = 0.0

    @property
    def slug(self) -> str:
        """The name, for files."""
        return self.name.replace(" ", "-").lower()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def start(self) -> None:
        """Starts the processes and waits for one generated token. Raises BenchError with the log's end."""
        started = time.monotonic()
        with self.log.open("ab") as log:
            self.processes = [
                subprocess.Popen(
                    command,
                    env={**os.environ, **self.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                for command in self.commands
            ]
        self.wait_for_token(started)
        self.first_token_s = time.monotonic() - started

    def wait_for_token(self, since: float) -> None:
        """Returns once it has generated one. Raises BenchError with the log's end when it ends, or has not done so in
        START_TIMEOUT_S from `since`."""
        headers = {"Authorization": f"Bearer {self.key}"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=60) as client:
            while not self._answers(client):
                self._check_alive(since)
                time.sleep(0.05)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Takes nothing of the machine but memory."""
        for process in self.processes:
            _signal(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in self.processes:
                _signal(process, signal.SIGCONT)

    def stop(self) -> None:
        for process in self.processes:
            _signal(process, signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(STOP_GRACE_S)
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL)
                process.wait()
        self.processes = []

    def peak_bytes(self) -> int:
        """Most memory that the largest of its processes, the engine, ever held."""
        return max(peak_bytes(process.pid) for process in self.processes)

    def _answers(self, client: httpx.Client) -> bool:
        body = {"model": MODEL, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
        try:
            if client.get("/health").status_code != 200:
                return False
            answer = client.post("/v1/completions", json=body)
        except httpx.TransportError:
            return False
        if answer.status_code == 503:
            return False
        if answer.status_code != 200:
            raise BenchError(f"{self.name} answers {answer.status_code}: {answer.text[:500]}")
        return True

    def _check_alive(self, started: float) -> None:
        for process in self.processes:
            if process.poll() is not None:
                raise BenchError(f"{self.name} ended with status {process.returncode}:\n{tail(self.log)}")
        if time.monotonic() - started > START_TIMEOUT_S:
            raise BenchError(f"{self.name} gave no token in {START_TIMEOUT_S:.0f} s:\n{tail(self.log)}")


def our_endpoint(name: str, model: Path, work: Path, quantization: str | None = None) -> Endpoint:
    """Server and engine of this checkout, side by side as the supervisor runs them. Its files are in `work`."""
    release, run, port, key = work / "release", work / "run", free_port(), secrets.token_hex(16)
    for folder in (release, run):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    deployment = Deployment(
        name="bench",
        release="bench",
        target="local",
        model=ModelSource(source=str(model), served_name=MODEL),
        engine=EngineOptions(
            dtype="float32",
            quantization=quantization,
            device="cpu",
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=MAX_SEQS,
            kv_cache_bytes=KV_GIB * 2**30,
        ),
        listen=Listen(host=HOST, port=port),
    )
    keys = work / "keys.json"
    (release / "deployment.json").write_bytes(encode(deployment))
    (release / "weights.json").write_bytes(encode(Weights(path=str(model))))
    keys.write_bytes(encode([ApiKey(name="bench", sha256=hashlib.sha256(key.encode()).hexdigest())]))
    runtime = [sys.executable, "-m", "runtime.cli"]
    folders = ["--release", str(release), "--run", str(run)]
    return Endpoint(
        name=name,
        commands=[
            [*runtime, "server", *folders, "--keys", str(keys), "--status", str(work / "status.json")],
            [*runtime, "engine", *folders],
        ],
        environment={},
        port=port,
        key=key,
        log=work / "log",
    )


def vllm_endpoint(name: str, model: Path, work: Path, peer: Path, dtype: str = "float32") -> Endpoint:
    """vLLM's CPU server with the same limits; what else decides its speed is its own default."""
    port, key = free_port(), secrets.token_hex(16)
    cores = sorted(os.sched_getaffinity(0))
    work.mkdir(exist_ok=True)
    return Endpoint(
        name=name,
        commands=[
            [
                *(str(peer / "bin" / "vllm"), "serve", str(model), "--served-model-name", MODEL),
                *("--dtype", dtype, "--max-model-len", str(MAX_MODEL_LEN)),
                *("--max-num-seqs", str(MAX_SEQS), "--host", HOST, "--port", str(port)),
            ]
        ],
        environment={
            **peer_environment(key),
            "VLLM_API_KEY": key,
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
            "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
        },
        port=port,
        key=key,
        log=work / "log",
    )


def peer_environment(key: str) -> dict[str, str]:
    """For every process of the peer: it asks no hub, reports to nobody, and knows the key."""
    return {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "OPENAI_API_KEY": key}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To the whole group: vLLM's workers are children that outlive a killed parent."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def tail(log: Path) -> str:
    """The last lines of a log, for an error."""
    return tail_of(log.read_text(errors="replace"))


def tail_of(text: str) -> str:
    return "\n".join(text.splitlines()[-15:])
