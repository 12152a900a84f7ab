"""The real server process, started as the supervisor starts it: with its socket as file descriptor 3."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
from engine_double import DEADLINE_S, ScriptedEngine, poll

from runtime.deployment import (
    HOLD_MAX_S,
    ApiKey,
    Deployment,
    EngineOptions,
    Listen,
    ModelSource,
    RequestLogMode,
    Weights,
    encode,
)
from runtime.handover import PREDECESSOR, ProcessId
from runtime.mailbox import write_atomic

MODEL = "tiny"
KEY = "sk-test-0123456789"
RELEASE = "r1"
MAX_NUM_SEQS = 4
_LAUNCH = (
    "import sys; from pathlib import Path; from runtime.server.main import run; sys.exit(run(*map(Path, sys.argv[1:])))"
)


@dataclass
class Server:
    """A server process, its folders and its engine."""

    root: Path
    engine: ScriptedEngine
    tls: Path | None = None  # folder of certificate.pem and key.pem; the deployment then asks for TLS
    request_log: RequestLogMode = "off"
    hold_max_s: float = HOLD_MAX_S
    process: subprocess.Popen[bytes] = field(init=False)
    url: str = field(init=False)

    @property
    def release(self) -> Path:
        return self.root / "releases" / RELEASE

    @property
    def run_dir(self) -> Path:
        return self.engine.path.parent

    @property
    def keys(self) -> Path:
        return self.root / "keys.json"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    @property
    def log(self) -> Path:
        return self.root / "server.log"

    def write_keys(self, *secrets: str) -> None:
        entries = [ApiKey(name=f"k{i}", sha256=key_digest(secret)) for i, secret in enumerate(secrets)]
        write_atomic(self.keys, encode(entries))

    def write_weights(self, folder: Path) -> None:
        write_atomic(self.release / "weights.json", encode(Weights(path=str(folder))))

    def write_deployment(self, port: int = 0) -> None:
        options = EngineOptions(dtype="float32", device="cpu", max_model_len=256, max_num_seqs=MAX_NUM_SEQS)
        deployment = Deployment(
            name="test",
            release=RELEASE,
            target="local",
            model=ModelSource(source="demo", served_name=MODEL),
            engine=options,
            listen=Listen(port=port, tls="off" if self.tls is None else "pinned"),
            request_log=self.request_log,
            hold_max_s=self.hold_max_s,
        )
        write_atomic(self.release / "deployment.json", encode(deployment))

    def launch(self) -> None:
        """Starts the process on a socket that this process holds, as a supervisor does."""
        self.write_deployment()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            scheme = "http" if self.tls is None else "https"
            self.url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
            self._start({"LISTEN_FDS": "1"}, listener.fileno())

    @contextmanager
    def launched(self) -> Iterator[int]:
        """The same, and the socket stays open here: file descriptor for the server that follows."""
        self.write_deployment()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            self._start({"LISTEN_FDS": "1"}, listener.fileno())
            yield listener.fileno()

    def launch_next(self, listener: int) -> None:
        """Another process on the same socket, which follows the one that runs; `process` is the new one."""
        self._start({"LISTEN_FDS": "1", PREDECESSOR: str(ProcessId.of(self.process.pid))}, listener)

    def launch_on(self, port: int) -> None:
        """Starts the process without a socket, so that it binds `port` itself."""
        self.write_deployment(port)
        self.url = f"http://127.0.0.1:{port}"
        self._start({}, None)

    def _start(self, environment: dict[str, str], listener: int | None) -> None:
        arguments = [self.release, self.engine.path.parent, self.keys, self.status]
        arguments += [] if self.tls is None else [self.tls]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("LISTEN_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCH, *map(str, arguments)],
                stdout=log,
                stderr=log,
                env={**inherited, "PYTHONPATH": os.getcwd(), **environment},
                pass_fds=() if listener is None else (3,),
                preexec_fn=None if listener is None else lambda: os.dup2(listener, 3),
            )

    def stop(self) -> None:
        """Ends the process if it still runs, at once."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def http(self, key: str | None = KEY) -> httpx.Client:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=DEADLINE_S)

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=DEADLINE_S)

    def health(self) -> httpx.Response:
        with self.http(None) as client:
            return client.get("/health")

    def wait_healthy(self) -> None:
        poll(lambda: self.health().status_code == 200, "the server is ready")

    def wait_answering(self) -> None:
        self.health()  # the socket is open already, so this waits for the process


def key_digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
