"""Real processes with scripted insides: a supervisor whose server and engine need no torch.

    python scripted.py supervise STATE MAILBOX PORT   python scripted.py agent STATE MAILBOX
    python scripted.py server RELEASE RUN             python scripted.py engine RELEASE RUN

With SCRIPTED_VM=1 the agent is that of a cloud's VM, but for systemd and the metadata service; the file AWAY in the
mailbox folder keeps it from its mailbox. With SCRIPTED_AGENT=0 there is none until it is asked for.

What the engine does is written in the deployment's served name: `ok`, `slow` (percent moves until the file `go` is
in the release folder), `stuck` (the same, but the percent stays), `silent` (the same, once it has loaded), `refuse`
(exit 78), `crash` (exit 70), `empty` (its first answer has no token), `other` (its first answer is another one),
`faint` (dies once, when it is first asked). With `deaf` it is the server that never accepts.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import socketserver
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from runtime.agent.main import Settings
from runtime.agent.supervisor import read_record

HERE = Path(__file__).resolve()
FAINTED = "fainted"  # in the release folder: "now", then "once"


def supervise(state: Path, mailbox: Path, port: int) -> int:
    from runtime.agent.rundir import lock_state, make_run_dir
    from runtime.agent.supervisor import EXIT_ALREADY_RUNNING, Supervisor, open_listener
    from runtime.agent.units import RELEASE_MARK, RestartPolicy, UnitSpec

    state.mkdir(parents=True, exist_ok=True)
    if lock_state(state) is None:
        return EXIT_ALREADY_RUNNING
    run_dir = str(make_run_dir(state))
    me = (sys.executable, str(HERE))
    watched = os.environ.get("SCRIPTED_AGENT") != "0"
    units = (
        UnitSpec("agent", (*me, "agent", str(state), str(mailbox)), autostart=watched, stop_s=3.0),
        UnitSpec("server", (*me, "server", RELEASE_MARK, run_dir), listens=True, stop_s=2.0),
        UnitSpec("engine", (*me, "engine", RELEASE_MARK, run_dir), autostart=False, stop_s=2.0),
    )
    quick = RestartPolicy(first_s=0.02, most_s=0.1)
    with open_listener("127.0.0.1", port) as listener:
        return Supervisor(state, mailbox, listener, units, quick).run()


def agent(state: Path, mailbox: Path) -> int:
    from runtime.agent.main import run

    full = Path(os.environ.get("SCRIPTED_FULL_DISK", "/nonexistent"))

    def free_bytes(_: Path) -> int:
        return 1000 if full.exists() else 2**40

    patience = float(os.environ.get("SCRIPTED_PATIENCE_S", "60"))
    times = Settings(poll_s=0.05, probe_s=0.1, retry_s=0.1, no_progress_s=patience, hang_s=patience, silent_s=1.0)
    if os.environ.get("SCRIPTED_VM") == "1":
        return vm_agent(state, mailbox, times)
    return run(state, mailbox, replace(times, free_bytes=free_bytes))


def vm_agent(state: Path, root: Path, times: Settings) -> int:
    from runtime.agent.control import SupervisorClient
    from runtime.agent.courier import Courier
    from runtime.agent.driver import Driver
    from runtime.agent.files import PRIVATE
    from runtime.agent.front import Front
    from runtime.agent.identity import Keeper
    from runtime.agent.main import Agent, follow_signals
    from runtime.agent.metadata import Metadata
    from runtime.agent.rounds import Rounds
    from runtime.agent.software import Software
    from runtime.agent.uploads import Uploads
    from runtime.agent.vm_machine import VmMachine
    from runtime.bucket import BucketError
    from runtime.mailbox import KEYS, STATUS, FolderMailbox

    class Store(FolderMailbox):
        def get(self, key: str) -> bytes | None:
            self.check()
            return super().get(key)

        def put(self, key: str, data: bytes) -> None:
            self.check()
            super().put(key, data)

        def check(self) -> None:
            if (root / "AWAY").exists():
                raise BucketError("no route to the store", transient=True)

    run_dir = state / "run"
    mirrors = {KEYS: run_dir / "keys.json", STATUS: run_dir / "status.json"}
    courier = Courier(Store(root), state / "mailbox", mirrors)
    uploads = Uploads(courier, lambda _: b"")
    metadata = Metadata("aws", host="127.0.0.1", port=9)
    record = read_record(state)
    assert record is not None
    machine = VmMachine(
        state=state,
        units=SupervisorClient(run_dir),
        instance_id="i-1",
        access=PRIVATE,
        mailbox=courier,
        metadata=metadata,
        software=Software(state, "aws", courier, PRIVATE, "boot"),
        driver=Driver("aws", state, metadata, "boot"),
        keeper=Keeper(state / "tls", PRIVATE),
        uploads=uploads,
        rounds=Rounds((uploads.upload, courier.sync), 0.05),
        front=Front(state, lambda _: "", state / "Caddyfile"),
        switch=SupervisorClient(run_dir).shutdown,
        run_dir=run_dir,
        open_port=lambda address, port: False,
    )
    machine.rounds.start()
    try:
        return follow_signals(Agent(machine, courier, times))
    finally:
        machine.rounds.end(1.0)
        courier.sync()


def server(release: str, run_dir: str) -> int:
    """503 with the engine's percent, or 200. `GET /pid` tells who answers."""
    from runtime.handover import HAND_OVER, announce, read_handover

    behaviour = behaviour_of(release)
    if behaviour == "deaf":
        print("error: this server cannot accept | hint: it is scripted", file=sys.stderr)
        return 78

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told = ask_engine(run_dir)
            handover = read_handover(Path(run_dir))
            if told.get("ready") and handover is not None and handover.held:
                told = {"ready": False, "phase": "serve"}
            body = json.dumps({"pid": os.getpid()} if self.path == "/pid" else told).encode()
            self.send_response(200 if told.get("ready") or self.path == "/pid" else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    assert os.environ["LISTEN_FDS"] == "1"
    assert os.environ["LISTEN_PID"] == str(os.getpid())
    httpd = socketserver.ThreadingTCPServer(("", 0), Handler, bind_and_activate=False)
    httpd.socket.close()
    httpd.socket = socket.socket(fileno=3)
    for number in (signal.SIGTERM, HAND_OVER):
        signal.signal(number, lambda *_: threading.Thread(target=httpd.shutdown).start())
    threading.Thread(target=answer_probes, args=(Path(run_dir), Path(release), behaviour), daemon=True).start()
    announce()
    httpd.serve_forever(poll_interval=0.02)
    httpd.server_close()  # waits for the requests that it has accepted
    return 0


def behaviour_of(release: str) -> str:
    return str(json.loads((Path(release) / "deployment.json").read_text())["model"]["served_name"])


def answer_probes(run_dir: Path, release: Path, behaviour: str) -> None:
    from runtime.deployment import encode
    from runtime.handover import PROBED, Probed, read_handover
    from runtime.mailbox import write_atomic

    asked = None
    while True:
        handover = read_handover(run_dir)
        if handover is not None and handover.release == release.name and handover.probe not in (None, asked):
            asked = handover.probe
            if behaviour == "faint" and not (release / FAINTED).exists():
                (release / FAINTED).write_text("now")
                continue
            tokens = {"empty": (), "other": (1, 2, 4)}.get(behaviour, (1, 2, 3))
            write_atomic(run_dir / PROBED, encode(Probed(probe=asked or "", tokens=tokens)))
        time.sleep(0.02)


def ask_engine(run_dir: str) -> dict[str, object]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2)
        try:
            client.connect(f"{run_dir}/engine.sock")
            return dict(json.loads(client.recv(4096)))
        except (OSError, ValueError):
            return {"phase": "load", "percent": None, "eta_s": None, "error": None, "hint": None}


def faint_once(sign: Path) -> None:
    while not (sign.exists() and sign.read_text() == "now"):
        time.sleep(0.02)
    sign.write_text("once")
    print("error: the engine fell over | hint: look at the log", file=sys.stderr, flush=True)
    os._exit(70)


def engine(release: str, run_dir: str) -> int:
    folder = Path(release)
    behaviour = behaviour_of(release)
    print(f"engine of {folder.name}: {behaviour}", file=sys.stderr)
    if behaviour == "refuse":
        print("error: config.json: hidden_act: 'gelu' is not supported | hint: choose another model", file=sys.stderr)
        return 78
    if behaviour == "crash":
        print("error: the engine fell over | hint: look at the log", file=sys.stderr)
        return 70
    print(f"weights in {json.loads((folder / 'weights.json').read_text())['path']}", file=sys.stderr)
    path = f"{run_dir}/engine.sock"
    Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    if behaviour == "faint":
        threading.Thread(target=faint_once, args=(folder / FAINTED,), daemon=True).start()
    percent = 0.0
    while True:
        client, _ = listener.accept()
        ready = behaviour in ("ok", "empty", "other", "deaf", "faint") or (folder / "go").exists()
        percent = min(99.0, percent + 1) if behaviour == "slow" else 7.0
        told: dict[str, object] = {"ready": ready, "phase": "load", "percent": percent}
        if behaviour == "silent":
            told = {"ready": ready, "phase": "serve", "error": f"no step, seen at {time.monotonic()}"}
        client.sendall(json.dumps(told).encode())
        client.close()


if __name__ == "__main__":
    role, *words = sys.argv[1:]
    if role == "supervise":
        sys.exit(supervise(Path(words[0]), Path(words[1]), int(words[2])))
    if role == "agent":
        sys.exit(agent(Path(words[0]), Path(words[1])))
    sys.exit({"server": server, "engine": engine}[role](words[0], words[1]))
