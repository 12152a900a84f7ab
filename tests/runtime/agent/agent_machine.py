"""A machine for tests: a real supervisor with its agent and scripted server and engine, and a user's side for it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil

from runtime.agent.control import SupervisorClient
from runtime.agent.supervisor import Record, read_record
from runtime.deployment import (
    Deployment,
    EngineOptions,
    Listen,
    ModelSource,
    Predicted,
    decode_deployment,
    encode,
)
from runtime.mailbox import CURRENT, STATUS, Current, FolderMailbox, Status, decode_status, release_key

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).with_name("scripted.py")
DEADLINE_S = 45.0  # a loaded machine
T = TypeVar("T")


def wait_for(ask: Callable[[], T | None], what: str, deadline_s: float = DEADLINE_S) -> T:
    """Polls until the answer is neither None nor False."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        answer = ask()
        if answer is not None and answer is not False:
            return answer
        time.sleep(0.01)
    raise AssertionError(f"not within {deadline_s:g} s: {what}")


def a_deployment(
    release: str, source: str, *, served_name: str = "ok", device: str = "cpu", hub_endpoint: str | None = None
) -> Deployment:
    return Deployment(
        name="demo",
        release=release,
        target="local",
        model=ModelSource(source=source, served_name=served_name, hub_endpoint=hub_endpoint),
        engine=EngineOptions(dtype="float32", device=device, max_model_len=128, max_num_seqs=4),
        listen=Listen(),
        predicted=Predicted(weights_bytes=1000, kv_bytes_per_token=1, kv_blocks=1, activation_bytes=1),
    )


def make_model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@dataclass
class Machine:
    """`deploy` is what the user's side does; everything else looks."""

    root: Path
    model: Path
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def state(self) -> Path:
        return self.root / "machine"

    @property
    def mailbox(self) -> FolderMailbox:
        return FolderMailbox(self.root / "mailbox")

    @property
    def units(self) -> SupervisorClient:
        return SupervisorClient(self.state / "run")

    @property
    def full_disk(self) -> Path:
        return self.root / "disk-is-full"

    def deploy(self, release: str, served_name: str = "ok", source: str | None = None) -> None:
        deployment = a_deployment(release, source or str(self.model), served_name=served_name)
        self.mailbox.put(release_key(release), encode(deployment))
        self.mailbox.put(CURRENT, encode(Current(release=release, deployment=release_key(release))))

    def deployment(self, release: str) -> Deployment:
        """What `deploy` has put into the mailbox."""
        return decode_deployment(self.mailbox.get(release_key(release)) or b"")

    def start(self) -> Record:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "SCRIPTED_FULL_DISK": str(self.full_disk), **self.env}
        env["XDG_CACHE_HOME"] = str(self.root / "cache")
        argv = [sys.executable, str(SCRIPT), "supervise", str(self.state), str(self.mailbox.root), "0"]
        self.process = subprocess.Popen(argv, env=env, start_new_session=True)
        return wait_for(self.record, "a supervisor")

    def serve(self, release: str) -> Status:
        """Deploys and starts it; returns when it is ready."""
        self.deploy(release)
        self.start()
        return self.wait_ready(release)

    def record(self) -> Record | None:
        return read_record(self.state)

    def status(self) -> Status | None:
        data = self.mailbox.get(STATUS)
        return None if data is None else decode_status(data)

    def wait_status(self, is_it: Callable[[Status], bool], what: str, deadline_s: float = DEADLINE_S) -> Status:
        last: list[Status | None] = [None]

        def look() -> Status | None:
            status = last[0] = self.status()
            return status if status is not None and is_it(status) else None

        try:
            return wait_for(look, what, deadline_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; the status is {last[0]}\n{self.log('agent')}") from None

    def wait_ready(self, release: str) -> Status:
        return self.wait_status(lambda s: (s.release, s.phase, s.error) == (release, "ready", None), f"{release} ready")

    def wait_way_back(self) -> Status:
        """Until a release has failed and the one before serves again."""
        return self.wait_status(lambda s: s.phase == "ready" and s.error is not None, "the way back")

    def log(self, unit: str) -> str:
        path = self.state / "logs" / f"{unit}.log"
        return path.read_text() if path.exists() else ""

    def pid(self, unit: str) -> int:
        return wait_for(lambda: self.units.state(unit).pid, f"{unit} runs")

    def get(self, path: str) -> tuple[int, dict[str, object]]:
        record = self.record()
        assert record is not None
        connection = http.client.HTTPConnection(record.host, record.port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def processes(self) -> list[psutil.Process]:
        """Everything that mentions this machine's folder, by any parent."""
        found = []
        for process in psutil.process_iter():
            try:
                if any(str(self.root) in word for word in process.cmdline()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)
