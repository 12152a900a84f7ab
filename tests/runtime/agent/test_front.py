"""Caddy in front of the server. Where it is installed the real one runs, with a certificate of its own authority in
place of a public one: no authority can reach this machine."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from agent_machine import wait_for

from runtime.agent.front import INNER_PORT, Front, caddyfile, certificate_error, domains_of
from runtime.agent.packages import install_argv, update_argv
from runtime.agent.status import PhaseError

DOMAIN = "llm.example.org"
needs_caddy = pytest.mark.skipif(shutil.which("caddy") is None, reason="caddy is not installed (apt install caddy)")


@dataclass
class Commands:
    ran: list[tuple[str, ...]] = field(default_factory=list)

    def call(self, argv: tuple[str, ...]) -> str:
        self.ran.append(argv)
        return ""


def test_apt_waits_for_its_lock_and_takes_nothing_that_is_only_recommended() -> None:
    common = ("apt-get", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3")
    assert update_argv() == (*common, "update")
    assert install_argv(("caddy",)) == (*common, "install", "-y", "--no-install-recommends", "caddy")


def test_an_authority_vouches_for_host_names_only() -> None:
    assert domains_of(("203.0.113.7", DOMAIN, "2001:db8::1")) == (DOMAIN,)
    with pytest.raises(PhaseError, match="no domain"):
        domains_of(("203.0.113.7",))


def test_caddy_is_restarted_when_its_file_changes_and_left_alone_else(tmp_path: Path) -> None:
    commands = Commands()
    front = Front(tmp_path, commands.call, tmp_path / "Caddyfile")
    front.open((DOMAIN,), 8000)
    front.open((DOMAIN,), 8000)
    assert [argv[1] for argv in commands.ran] == ["enable", "restart", "enable", "start"]


def test_only_our_own_caddy_is_stopped(tmp_path: Path) -> None:
    commands = Commands()
    front = Front(tmp_path, commands.call, tmp_path / "Caddyfile")
    front.config.write_text("# somebody's own\n")
    front.close()
    assert commands.ran == []
    front.open((DOMAIN,), 8000)
    front.close()
    assert commands.ran[-1] == ("systemctl", "disable", "--now", "caddy.service")


@needs_caddy
def test_caddy_takes_the_file(tmp_path: Path) -> None:
    config = tmp_path / "Caddyfile"
    config.write_text(caddyfile((DOMAIN, "second.example.org"), 8000))
    argv = ["caddy", "validate", "--config", str(config), "--adapter", "caddyfile"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr


@dataclass
class Running:
    """A Caddy and the server behind it; `go` lets a stream's second event out."""

    port: int
    authority: Path
    go: threading.Event

    @property
    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    go = threading.Event()

    class Backend(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b"data: first\n\n")
            go.wait(10)
            self.wfile.write(b"data: second\n\n")

        def log_message(self, *_: object) -> None:
            pass

    backend = ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    threading.Thread(target=backend.serve_forever, args=(0.02,), daemon=True).start()
    port = free_port()
    text = caddyfile((DOMAIN,), port)
    start, end = text.index("\t\tissuer"), text.index("\t}\n\treverse_proxy")
    text = text[:start] + "\t\tissuer internal\n" + text[end:]
    text = text.replace("http_port 80\n", f"http_port {free_port()}\n\tskip_install_trust\n")
    config = tmp_path / "Caddyfile"
    config.write_text(text.replace(str(INNER_PORT), str(backend.server_address[1])))
    env = {**os.environ, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    with open(tmp_path / "caddy.log", "wb") as log:
        argv = ["caddy", "run", "--config", str(config), "--adapter", "caddyfile"]
        caddy = subprocess.Popen(argv, stdout=log, stderr=log, env=env)
    authority = tmp_path / "data/caddy/pki/authorities/local/root.crt"
    try:
        wait_for(authority.exists, "Caddy's authority")
        running = Running(port, authority, go)
        wait_for(lambda: certificate_error(DOMAIN, port, running.trusting) is None, "a certificate")
        yield running
    finally:
        caddy.terminate()
        caddy.wait(10)
        backend.shutdown()
        backend.server_close()


@needs_caddy
def test_a_certificate_that_clients_would_refuse_is_told_with_its_domain(running: Running) -> None:
    assert DOMAIN in (certificate_error(DOMAIN, running.port) or "")
    assert certificate_error("other.example.org", running.port, running.trusting) is not None


@needs_caddy
def test_events_of_a_stream_pass_caddy_as_they_come(running: Running) -> None:
    connection = Through(running)
    try:
        connection.request("GET", "/", headers={"Host": DOMAIN})
        response = connection.getresponse()
        assert response.readline() == b"data: first\n"
        running.go.set()
        assert b"data: second" in response.read()
    finally:
        connection.close()


class Through(http.client.HTTPConnection):
    """A client that asks for DOMAIN, which no name server knows."""

    def __init__(self, running: Running) -> None:
        super().__init__("127.0.0.1", running.port, timeout=10)
        self._context = running.trusting

    def connect(self) -> None:
        super().connect()
        self.sock = self._context.wrap_socket(self.sock, server_hostname=DOMAIN)


def test_where_nobody_listens_there_is_no_certificate() -> None:
    assert certificate_error(DOMAIN, free_port()) is not None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
