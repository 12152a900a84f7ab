"""The real server over TLS, with the certificate that a machine makes for itself."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from engine_double import poll
from server_process import KEY, Server

from runtime.agent.files import PRIVATE
from runtime.agent.identity import Keeper
from runtime.agent.serving import probe_health

NAMES = ("127.0.0.1", "llm.example.org")


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Keeper:
    keeper = Keeper(tmp_path_factory.mktemp("tls"), PRIVATE)
    keeper.ensure_pinned("i-1", NAMES, datetime.now(UTC))
    return keeper


@pytest.fixture(scope="module")
def server(make_server: Callable[..., Server], keeper: Keeper) -> Server:
    server = make_server()
    server.tls = keeper.certificate_file.parent
    server.engine.start()
    server.launch()
    poll(lambda: answers(server, keeper), "the server is ready")
    return server


def answers(server: Server, keeper: Keeper) -> bool:
    health = probe_health("127.0.0.1", port_of(server), keeper.leaf())
    return health is not None and health.ready


def port_of(server: Server) -> int:
    port = urlsplit(server.url).port
    assert port is not None
    return port


def pinning(keeper: Keeper) -> ssl.SSLContext:
    """A client that trusts this certificate only, and is as strict as RFC 5280 (Python's default from 3.13 on)."""
    context = ssl.create_default_context(cafile=str(keeper.certificate_file))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def test_a_client_that_pins_the_certificate_gets_a_completion(server: Server, keeper: Keeper) -> None:
    with httpx.Client(
        base_url=server.url, verify=pinning(keeper), headers={"Authorization": f"Bearer {KEY}"}
    ) as client:
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 2}
        assert client.post("/v1/completions", json=body).status_code == 200


def test_a_host_name_of_the_certificate_is_as_good_as_an_address(server: Server, keeper: Keeper) -> None:
    with (
        socket.create_connection(("127.0.0.1", port_of(server))) as raw,
        pinning(keeper).wrap_socket(raw, server_hostname=NAMES[1]) as secured,
    ):
        assert secured.version() == "TLSv1.3"


def test_a_client_without_the_certificate_refuses_the_server(server: Server) -> None:
    with httpx.Client(base_url=server.url) as client, pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY"):
        client.get("/health")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tls_1_1_is_refused(server: Server, keeper: Keeper) -> None:
    context = pinning(keeper)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", port_of(server))) as raw, pytest.raises((ssl.SSLError, OSError)):
        context.wrap_socket(raw, server_hostname="127.0.0.1")


def test_plain_http_is_not_answered(server: Server) -> None:
    with httpx.Client(base_url=server.url.replace("https", "http")) as client, pytest.raises(httpx.TransportError):
        client.get("/health")


def test_the_agent_believes_no_other_certificate_on_its_own_port(server: Server, tmp_path: Path) -> None:
    other = Keeper(tmp_path / "other", PRIVATE)
    other.ensure_pinned("i-1", NAMES, datetime.now(UTC) - timedelta(days=1))
    health = probe_health("127.0.0.1", port_of(server), other.leaf())
    assert health is not None
    assert not health.ready
    assert "another certificate" in (health.error or "")


def test_without_its_certificate_the_server_does_not_fall_back_to_plain_http(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = make_server()
    server.tls = tmp_path / "empty"
    server.launch()
    assert server.process.wait(20) == 78
    assert f"error: {tmp_path / 'empty'}" in server.log.read_text()
