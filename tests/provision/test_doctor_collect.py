"""The doctor at a real deployment: a local one whose model is missing, and endpoints that are not as they should."""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from provision import process
from provision.cli.doctor import explaining
from provision.doctor.collect import collect, machine_facts, probe_endpoint
from provision.doctor.rules import diagnose
from provision.errors import FailedError
from provision.host import HostRecord, HostTarget
from provision.local import LocalTarget, failure_of
from provision.render import render
from provision.spec import parse
from provision.state import LocalState, open_state
from provision.target import Access
from runtime.agent.identity import make_pair
from runtime.deployment import EngineOptions, Predicted
from tests.lab.sshd import serve_ssh

KEY = "sk-of-this-test-0123456789"
ENGINE = EngineOptions(dtype="float32", device="cpu", max_model_len=2048, max_num_seqs=8)
PREDICTED = Predicted(weights_bytes=1, kv_bytes_per_token=2, kv_blocks=3, activation_bytes=4)
WITHIN_S = 60.0


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalTarget]:
    """A deployment that has failed in phase weights."""
    for name, folder in (("XDG_STATE_HOME", "state"), ("XDG_CACHE_HOME", "cache"), ("XDG_RUNTIME_DIR", "")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    target = LocalTarget(open_state("chat"))
    port = process.free_port("127.0.0.1", 20000 + os.getpid() % 20000)
    spec = parse({"name": "chat", "model": "/nowhere/model", "port": port})
    target.start(render(spec, ENGINE, PREDICTED, release="r1", api_key=KEY))
    deadline = time.monotonic() + WITHIN_S
    while target.observe().life != "failed":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield target
    target.remove()


def test_a_deployment_that_failed_is_asked_and_its_cause_named(
    target: LocalTarget, capsys: pytest.CaptureFixture[str]
) -> None:
    evidence = collect(target, deep=True)
    assert (evidence.phase, evidence.life, evidence.target) == ("weights", "failed", "local")
    assert evidence.logs["agent"]
    assert evidence.disks
    assert (evidence.memory_bytes or 0) > (evidence.free_memory_bytes or 0) > 0
    assert diagnose(evidence)[0].rule == "model-not-found"
    with pytest.raises(FailedError), explaining(target):
        raise failure_of(target, target.observe())
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "doctor: there is no model, or no revision, of this name"
    assert said[1].strip().startswith("deployctl redeploy chat --model")


class Handler(BaseHTTPRequestHandler):
    """Knows no key."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def serve(folder: Path, born: datetime) -> tuple[ThreadingHTTPServer, str]:
    """A server with a certificate that was made at `born`; the certificate."""
    pair = make_pair(("127.0.0.1",), born)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (folder / "certificate").write_bytes(pair.certificate)
    (folder / "key").write_bytes(pair.key)
    context.load_cert_chain(folder / "certificate", folder / "key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server, pair.certificate.decode()


def test_the_endpoint_is_probed_from_here(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    server, certificate = serve(tmp_path, now)
    url = f"https://127.0.0.1:{server.server_address[1]}/v1"
    good, days = probe_endpoint(Access(url, KEY, "m", 256, certificate))
    assert (good.refused, good.tls, good.status) == (None, None, 401)
    assert (days or 0) > 30
    other = make_pair(("127.0.0.1",), now).certificate.decode()
    wrong, _ = probe_endpoint(Access(url, KEY, "m", 256, other))
    assert "CERTIFICATE_VERIFY_FAILED" in (wrong.tls or "")
    server.shutdown()
    server.server_close()
    closed, _ = probe_endpoint(Access(url, KEY, "m", 256, certificate))
    assert "refused" in (closed.refused or "").lower()


def test_an_expired_certificate_is_told_from_another_machines(tmp_path: Path) -> None:
    server, certificate = serve(tmp_path, datetime.now(UTC) - timedelta(days=4000))
    url = f"https://127.0.0.1:{server.server_address[1]}/v1"
    probe, _ = probe_endpoint(Access(url, KEY, "m", 256, certificate))
    server.shutdown()
    server.server_close()
    assert "certificate has expired" in (probe.tls or "")


@pytest.mark.skipif(os.geteuid() != 0, reason="the script runs as root")
def test_a_machine_over_ssh_is_asked_with_one_script_and_a_dead_connection_is_an_unknown(tmp_path: Path) -> None:
    target = HostTarget(LocalState("chat", tmp_path / "chat"))
    with serve_ssh(tmp_path / "sshd") as server:
        login = server.login()
        record = HostRecord(login.user, login.host, login.port, login.host_key, str(login.key))
        target.write_record(record)
        facts, asked_at = machine_facts(target, deep=True)
        assert abs((facts.clock or 0) - asked_at) < 30
        assert facts.disks
        assert (facts.memory_bytes or 0) > 2**20
    evidence = collect(target, deep=True)
    assert any(line.startswith("machine: ") for line in evidence.unknown)
    assert evidence.clock_ahead_s is None
