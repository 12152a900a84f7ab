"""A machine without a machine: it reads its mailbox, reports through it, and answers on its address as a server would.

The accounts give addresses of 127.0.0.0/8, so that a thread of the test can listen there. Its certificate is made by
the agent's own code. What it is not: a VM; boot, phases and engine are tested in the guest.
"""

from __future__ import annotations

import json
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec

from runtime.agent.identity import make_pair
from runtime.deployment import Deployment, decode_deployment, decode_keys
from runtime.mailbox import (
    BUILT,
    CURRENT,
    IDENTITY,
    KEYS,
    LIFE,
    LOGS,
    RELEASES,
    STATUS,
    BucketMailbox,
    Built,
    Identity,
    ReleaseEntry,
    Status,
    decode_current,
    decode_life,
    encode_status,
)

Find = Callable[[], tuple[str, BucketMailbox] | None]
PHASES = ("python", "disk", "driver", "runtime", "weights", "load", "serve")
POLL_S = 0.2


class ScriptedMachine(threading.Thread):
    """Plays the machine that `find` shows: its id and its mailbox, None while there is none. A release that it cannot
    load fails in phase load; then the one before serves again, if there was one."""

    def __init__(self, find: Find) -> None:
        super().__init__(daemon=True)
        self._find = find
        self._over = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self._served: str | None = None
        self._woken_at: int | None = None
        self.bad_lengths: set[int] = set()  # a max_model_len that this machine cannot load
        self.built = Built(release="", torch="2.11.0+cu130", driver="580.95.05")  # what it says that it runs on
        self.requests: list[str] = []
        self._kept: dict[str, ReleaseEntry] = {}
        self._digests: list[str] = []  # of the keys that are let in now

    def run(self) -> None:
        while not self._over.wait(POLL_S):
            if found := self._find():
                self._look(*found)

    def fall_asleep(self) -> None:
        """What a machine says last before it stops itself because nobody asks it anything."""
        found = self._find()
        assert found is not None
        assert self._served is not None
        instance, mailbox = found
        hint = "deployctl wake chat"
        self._report(mailbox, instance, self._served, "stopped", error="no request for 30 min", hint=hint)

    def end(self) -> None:
        self._over.set()
        self.join()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _look(self, instance: str, mailbox: BucketMailbox) -> None:
        data, keys = mailbox.get(CURRENT), mailbox.get(KEYS)
        current = decode_current(data) if data else None
        if current is None or keys is None:
            return
        self._digests[:] = [key.sha256 for key in decode_keys(keys)]
        woken_at = decode_life(mailbox.get(LIFE) or b"{}").woken_at
        if self._served is not None and woken_at != self._woken_at:
            self._report(mailbox, instance, self._served, "ready")
        self._woken_at = woken_at
        if current.release == self._served:
            return
        deployment = decode_deployment(mailbox.get(current.deployment) or b"")
        if deployment.engine.max_model_len in self.bad_lengths:
            self._report(mailbox, instance, current.release, "load", error="it does not fit", hint="make it smaller")
            if self._served is not None:
                error = f"release {current.release} failed: it does not fit"
                self._report(mailbox, instance, self._served, "ready", error=error)
            self._served = current.release
            return
        for phase in PHASES:
            self._report(mailbox, instance, current.release, phase)
        if self._server is None:
            self._listen(mailbox, instance, deployment)
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        mailbox.put(f"{LOGS}engine.log", f"{stamp} {current.release} is loaded\n".encode())
        built = msgspec.structs.replace(self.built, release=current.release)
        mailbox.put(BUILT, msgspec.json.encode(built))
        self._report(mailbox, instance, current.release, "ready")
        self._served = current.release
        self._tell_releases(mailbox, deployment)

    def _tell_releases(self, mailbox: BucketMailbox, served: Deployment) -> None:
        """It keeps all that have served, and the last one serves."""
        engine = served.engine
        self._kept.pop(served.release, None)
        self._kept[served.release] = ReleaseEntry(
            release=served.release,
            state="ready",
            model=served.model.source,
            max_model_len=engine.max_model_len,
            dtype=engine.dtype,
            ready_at=time.time(),
        )
        *earlier, newest = self._kept.values()
        entries = [msgspec.structs.replace(newest, state="serving"), *reversed(earlier)]
        mailbox.put(RELEASES, msgspec.json.encode(entries))

    def _report(
        self,
        mailbox: BucketMailbox,
        instance: str,
        release: str,
        phase: Any,
        error: str | None = None,
        hint: str | None = None,
    ) -> None:
        status = Status(
            instance_id=instance, release=release, phase=phase, updated_at=time.time(), error=error, hint=hint
        )
        mailbox.put(STATUS, encode_status(status))

    def _listen(self, mailbox: BucketMailbox, instance: str, deployment: Deployment) -> None:
        listen = deployment.listen
        pair = make_pair(listen.names, datetime.now(UTC))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            for name, data in (("certificate", pair.certificate), ("key", pair.key)):
                Path(folder, name).write_bytes(data)
            context.load_cert_chain(Path(folder, "certificate"), Path(folder, "key"))
        handler = type("Handler", (_Handler,), {"digests": self._digests, "requests": self.requests})
        address = next(name for name in listen.names if name.startswith("127."))
        self._server = ThreadingHTTPServer((address, listen.port), handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        identity = Identity(instance_id=instance, certificate=pair.certificate.decode())
        mailbox.put(
            IDENTITY, json.dumps({name: getattr(identity, name) for name in identity.__struct_fields__}).encode()
        )


class _Handler(BaseHTTPRequestHandler):
    digests: list[str]
    requests: list[str]

    def do_GET(self) -> None:
        self._answer({"data": []})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.requests.append(self.path)
        message = {"role": "assistant", "content": "Paris."}
        usage = {"prompt_tokens": 7, "completion_tokens": 2}
        self._answer({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})

    def _answer(self, body: dict[str, Any]) -> None:
        import hashlib

        key = (self.headers["authorization"] or "").removeprefix("Bearer ")
        allowed = hashlib.sha256(key.encode()).hexdigest() in self.digests
        data = json.dumps(body if allowed else {"error": {"message": "wrong key"}}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def playing(machine: ScriptedMachine) -> Iterator[ScriptedMachine]:
    machine.start()
    try:
        yield machine
    finally:
        machine.end()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
