"""provision.reach and the pinned client, against a real TLS server with a certificate of the agent's own making."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from provision.client import OpenAIClient, pinned_context
from provision.errors import EndpointError
from provision.reach import CLOSED, COMPLETION, REFUSAL, Check, is_allowed, own_check, prove_reach
from provision.target import Access, Observation
from runtime.agent.identity import Pair, make_pair
from tests.lab.scripted_machine import free_port

KEY = "sk-right"
SEEN = Observation("chat", "aws", "ready")


class Endpoint(BaseHTTPRequestHandler):
    """Knows one key."""

    open_to_all = False

    def do_GET(self) -> None:
        allowed = self.open_to_all or self.headers["authorization"] == f"Bearer {KEY}"
        self.send_response(200 if allowed else 401)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def serving(pair: Pair | None, folder: Path, *, open_to_all: bool = False) -> Iterator[int]:
    handler = type("Handler", (Endpoint,), {"open_to_all": open_to_all})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if pair is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            (folder / "c.pem").write_bytes(pair.certificate)
            (folder / "k.pem").write_bytes(pair.key)
            context.load_cert_chain(folder / "c.pem", folder / "k.pem")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def pair_for(*names: str) -> Pair:
    return make_pair(names, datetime.now(UTC))


def access(port: int, pair: Pair | None, scheme: str = "https") -> Access:
    certificate = pair.certificate.decode() if pair else None
    return Access(f"{scheme}://127.0.0.1:{port}/v1", KEY, "m", 2048, certificate)


def client_of(base_url: str, pair: Pair) -> OpenAIClient:
    return OpenAIClient(base_url, KEY, pair.certificate.decode())


def complete(asked: Access) -> str:
    with OpenAIClient(asked.base_url, asked.api_key, asked.certificate) as client:
        if client.status_of("models") != 200:
            raise EndpointError("refused")
    return "Paris."


def prove(
    where: Access, *, cidrs: tuple[str, ...] = ("198.51.100.0/24",), caller: str | None = None, intranet: bool = False
) -> dict[str, Check]:
    checks = prove_reach(where, SEEN, allowed_cidrs=cidrs, intranet=intranet, complete=complete, caller=caller)
    return {check.question.partition(" 127.")[0]: check for check in checks}


def test_an_endpoint_as_it_should_be_is_proven_point_by_point(tmp_path: Path) -> None:
    pair = pair_for("127.0.0.1")
    with serving(pair, tmp_path) as port:
        found = prove(access(port, pair), caller="198.51.100.7")
    assert {name: check.answer for name, check in found.items()} == {
        "TCP": "yes",
        "TLS shows the machine's own certificate": "yes",
        COMPLETION: "yes",
        REFUSAL: "yes",
        CLOSED: "unknown",
        "the machine's own completion through its port was answered": "yes",
    }


def test_another_certificate_for_the_same_address_is_no(tmp_path: Path) -> None:
    with serving(pair_for("127.0.0.1"), tmp_path) as port:
        found = prove(access(port, pair_for("127.0.0.1")))
    assert found["TLS shows the machine's own certificate"].answer == "no"
    assert found[COMPLETION].answer == "no"


def test_the_pinned_certificate_for_another_address_is_no(tmp_path: Path) -> None:
    pair = pair_for("192.0.2.1")
    with (
        serving(pair, tmp_path) as port,
        client_of(f"https://127.0.0.1:{port}/v1", pair) as client,
        pytest.raises(EndpointError, match=r"127\.0\.0\.1"),
    ):
        client.status_of("models")


def test_a_name_in_the_certificate_is_checked_like_an_address(tmp_path: Path) -> None:
    pair = pair_for("localhost")
    with serving(pair, tmp_path) as port, client_of(f"https://localhost:{port}/v1", pair) as client:
        assert client.status_of("models") == 200


def test_an_endpoint_that_lets_everybody_in_is_no(tmp_path: Path) -> None:
    pair = pair_for("127.0.0.1")
    with serving(pair, tmp_path, open_to_all=True) as port:
        assert prove(access(port, pair))[REFUSAL].answer == "no"


def test_plain_http_is_told(tmp_path: Path) -> None:
    with serving(None, tmp_path) as port:
        found = prove(access(port, None, "http"))
    assert found["TLS shows a certificate to trust"].answer == "no"
    assert found[COMPLETION].answer == "yes"


def test_who_is_not_allowed_and_gets_in_is_a_no(tmp_path: Path) -> None:
    pair = pair_for("127.0.0.1")
    with serving(pair, tmp_path) as port:
        assert prove(access(port, pair), caller="203.0.113.9")[CLOSED].answer == "no"


def test_who_is_not_allowed_and_is_kept_out_is_a_yes() -> None:
    found = prove(access(free_port(), None), caller="203.0.113.9")
    assert found[CLOSED].answer == "yes"
    assert found["TCP"].answer == "no"
    assert found[COMPLETION].answer == "unknown"


def test_an_intranet_endpoint_that_is_closed_from_here_is_no_failure() -> None:
    found = prove(access(free_port(), None), intranet=True)
    assert found[CLOSED].answer == "yes"
    assert "no" not in {check.answer for check in found.values()}


def test_what_could_not_be_tried_is_unknown() -> None:
    found = prove(access(free_port(), None))
    assert found[CLOSED].answer == "unknown"
    assert found[REFUSAL].answer == "unknown"


@pytest.mark.parametrize(
    ("life", "answer"), [("ready", "yes"), ("failed", "no"), ("starting", "unknown"), ("unknown", "unknown")]
)
def test_the_machines_own_check_is_its_status(life: str, answer: str) -> None:
    assert own_check(Observation("chat", "aws", life)).answer == answer  # type: ignore[arg-type]


def test_an_address_that_is_not_known_is_neither_in_nor_out() -> None:
    assert is_allowed("10.1.2.3", ("10.0.0.0/8",)) is True
    assert is_allowed("11.1.2.3", ("10.0.0.0/8",)) is False
    assert is_allowed(None, ("10.0.0.0/8",)) is None


def test_a_certificate_that_is_none_is_an_error_and_no_trust() -> None:
    with pytest.raises(EndpointError, match="cannot be read"):
        pinned_context("not a certificate")
