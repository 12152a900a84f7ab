"""A small random model behind the whole stack: a real supervisor with agent, server and engine, as on `local`.

Only the engine differs, by what `tests.chaos.engine` adds. The KV pool is so small that requests preempt each other.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from runtime.agent.control import SupervisorClient
from runtime.agent.supervisor import read_record
from runtime.agent.units import UnitState
from runtime.deployment import ApiKey, Deployment, EngineOptions, Listen, ModelSource, encode
from runtime.mailbox import CURRENT, KEYS, STATUS, Current, FolderMailbox, decode_status, release_key
from tests.chaos.setting import CONTEXT, MODEL, SEATS, SECRETS

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
RELEASE = "r1"
UNITS = ("engine", "server", "agent")
BLOCKS = 48  # of 16 tokens: three requests of full length, while up to SEATS run
CHUNK = 96  # tokens of a step
START_S = 120.0
STOP_S = 30.0
T = TypeVar("T")


def write_model(folder: Path) -> Path:
    """A llama of three layers with a byte-level vocabulary; its text is noise, often cut inside a character."""
    from transformers import LlamaConfig

    from tests.lab.checkpoints import save_config
    from tests.lab.models import CONFIG, END, write_tokenizer

    folder.mkdir(parents=True)
    tokenizer = write_tokenizer(folder)
    shape = {name: value for name, value in CONFIG.items() if name not in ("architectures", "torch_dtype")}
    end = tokenizer.token_to_id(END)
    save_config(
        LlamaConfig(**shape, vocab_size=tokenizer.get_vocab_size(), bos_token_id=None, eos_token_id=end), folder
    )
    return folder


@dataclass
class Machine:
    """One life of the stack. `start`, then ask on `port`; `stop` in the end, whatever happened."""

    root: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    ordered: Counter[str] = field(default_factory=Counter)  # exits by unit that were asked for
    allowed: Counter[str] = field(default_factory=Counter)  # and beside them those that may or may not come

    @property
    def state(self) -> Path:
        return self.root / "machine"

    @property
    def units(self) -> SupervisorClient:
        return SupervisorClient(self.state / "run")

    def start(self) -> None:
        """Returns once the agent says that the release is ready, as `up` does."""
        model = write_model(self.root / "model")
        self._fill_mailbox(model)
        argv = [sys.executable, "-m", "tests.chaos.machine", str(self.state), str(self.root / "mailbox")]
        env = {name: value for name, value in os.environ.items() if not name.startswith("LISTEN_")}
        # The machine is shared with the program that asks: threads that wait must not spin.
        env |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(self.root / "cache"), "GOMP_SPINCOUNT": "1000"}
        self.process = subprocess.Popen(argv, cwd=ROOT, env=env, start_new_session=True)
        record = wait_for(lambda: read_record(self.state), "a supervisor", START_S)
        self.port = record.port
        try:
            wait_for(lambda: self._is_settled() or None, "the release is ready", START_S)
        except TimeoutError as error:
            logs = "\n".join(f"{name}: {self.log(name)[-1500:]}" for name in UNITS)
            raise TimeoutError(f"{error}; the logs end with\n{logs}") from None

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()  # its units die with it
                self.process.wait()

    def is_ready(self) -> bool:
        return self.get("/health")[0] == 200

    def _is_settled(self) -> bool:
        data = FolderMailbox(self.root / "mailbox").get(STATUS)
        return data is not None and decode_status(data).phase == "ready" and self.is_ready()

    def get(self, path: str) -> tuple[int, bytes]:
        """(0, b"") when nobody answers."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {SECRETS['main']}"})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def gauges(self) -> dict[str, float]:
        """Values of `deployctl_…` metrics by name; empty when they cannot be read."""
        status, body = self.get("/metrics")
        found: dict[str, float] = {}
        for line in body.decode().splitlines() if status == 200 else ():
            if line.startswith("deployctl_"):
                name, _, value = line.rpartition(" ")
                found[name.partition("{")[0]] = float(value)
        return found

    def unit(self, name: str) -> UnitState:
        return self.units.state(name)

    def pid(self, name: str) -> int | None:
        return self.unit(name).pid

    def signal(self, name: str, number: signal.Signals, *, ends: bool, may_end: bool = False) -> None:
        """`ends`: the unit is expected to end by it."""
        pid = wait_for(lambda: self.pid(name), f"{name} runs", START_S)
        self.ordered[name] += ends
        self.allowed[name] += may_end
        os.kill(pid, number)

    def unordered_exits(self) -> dict[str, int]:
        """How many more exits the supervisor counted than were asked for (negative: fewer), by unit."""
        found = {}
        for name in UNITS:
            more = self.unit(name).exits - self.ordered[name]
            found[name] = max(0, more - self.allowed[name]) if more > 0 else more
        return found

    def log(self, unit: str) -> str:
        """The unit's log, the rotated part first."""
        files = sorted((self.state / "logs").glob(f"{unit}.log*"), reverse=True)
        return "".join(file.read_text(errors="replace") for file in files)

    def _fill_mailbox(self, model: Path) -> None:
        deployment = Deployment(
            name="chaos",
            release=RELEASE,
            target="local",
            model=ModelSource(source=str(model), served_name=MODEL),
            engine=EngineOptions(
                dtype="float32",
                device="cpu",
                max_model_len=CONTEXT,
                max_num_seqs=SEATS,
                kv_cache_bytes=(BLOCKS + 1) * _block_bytes(model),
                max_batched_tokens=CHUNK,
                num_threads=1,
            ),
            listen=Listen(host=HOST, port=0),
        )
        mailbox = FolderMailbox(self.root / "mailbox")
        limits = {"limited": (60, 4000)}
        keys = [
            ApiKey(name=name, sha256=hashlib.sha256(secret.encode()).hexdigest(), rpm=rpm, tpm=tpm)
            for name, secret in SECRETS.items()
            for rpm, tpm in [limits.get(name, (None, None))]
        ]
        mailbox.put(KEYS, encode(keys))
        mailbox.put(release_key(RELEASE), encode(deployment))
        mailbox.put(CURRENT, encode(Current(release=RELEASE, deployment=release_key(RELEASE))))


def _block_bytes(model: Path) -> int:
    """Keys and values of 16 tokens in float32."""
    config: dict[str, Any] = json.loads((model / "config.json").read_text())
    width = config["num_key_value_heads"] * config["hidden_size"] // config["num_attention_heads"]
    return int(2 * config["num_hidden_layers"] * 16 * width * 4)


def resident_mib(pid: int) -> float:
    """Resident memory of one process; 0 when it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def wait_for(look: Callable[[], T | None], what: str, seconds: float) -> T:
    """Polls until `look` gives something that is not None. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = look()
        if found is not None:
            return found
        time.sleep(0.05)
    raise TimeoutError(f"not within {seconds:g} s: {what}")


def supervise(state: Path, mailbox: Path) -> int:
    """`runtime.agent.supervisor.run` with this package's engine."""
    from runtime.agent.rundir import lock_state, make_run_dir
    from runtime.agent.supervisor import Supervisor, open_listener, standard_units

    state.mkdir(mode=0o700, parents=True)
    lock = lock_state(state)
    assert lock is not None
    units = standard_units(state, mailbox, make_run_dir(state))
    mine = ("-m", "tests.chaos.engine")
    units = tuple(
        replace(unit, argv=(unit.argv[0], *mine, *unit.argv[4:])) if unit.name == "engine" else unit for unit in units
    )
    with open_listener(HOST, 0) as listener:
        return Supervisor(state, mailbox, listener, units).run()


if __name__ == "__main__":
    sys.exit(supervise(Path(sys.argv[1]), Path(sys.argv[2])))
