"""provision.connect: what each client is told. That the programs run is held by tests/runtime/server."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from provision.cli.app import app
from provision.cli.open import fingerprint
from provision.connect import GUIDES, Endpoint

KEY = "sk-of-this-test-0123456789"
PEM = Path("/home/ada/it's mine/chat.pem")
PINNED = Endpoint("chat", "https://203.0.113.7:8000/v1", "qwen", None, PEM, PEM.with_suffix(".bundle.pem"))
LOCAL = Endpoint("chat", "http://127.0.0.1:8000/v1", "demo")
SHOWN = Endpoint("chat", "http://127.0.0.1:8000/v1", "demo", key=KEY)
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("client", GUIDES)
def test_the_key_stands_in_a_text_only_where_it_was_asked_for(client: str) -> None:
    assert KEY in GUIDES[client](SHOWN).text
    hidden = GUIDES[client](LOCAL)
    assert "OPENAI_API_KEY" in hidden.text or "`deployctl endpoint chat` prints it" in hidden.text


@pytest.mark.parametrize("client", GUIDES)
def test_every_client_is_told_how_to_trust_the_certificate(client: str) -> None:
    guide = GUIDES[client](PINNED)
    assert re.search(r"chat\.(bundle\.)?pem", guide.text + " ".join(guide.notes))
    without = GUIDES[client](LOCAL)
    assert not re.search(r"\.pem|ssl|cacert|SSL_CERT_FILE", without.text + " ".join(without.notes))


@pytest.mark.parametrize("endpoint", [PINNED, LOCAL, SHOWN])
@pytest.mark.parametrize("client", GUIDES)
def test_every_program_is_one_whatever_stands_in_a_path(client: str, endpoint: Endpoint) -> None:
    guide = GUIDES[client](endpoint)
    if guide.language == "python":
        ast.parse(guide.text)
    elif guide.language == "sh":
        assert subprocess.run(["sh", "-n", "-c", guide.text], check=False).returncode == 0
        assert not endpoint.pem or any("it's mine" in word for word in shlex.split(guide.text))


def test_chatbox_is_told_the_rows_of_its_window_and_to_ask_the_endpoint_itself() -> None:
    rows = dict(GUIDES["chatbox"](LOCAL).settings)
    assert rows["API host"] + rows["API path"] == "http://127.0.0.1:8000/v1/chat/completions"
    assert rows["Improve network compatibility"].startswith("off")
    assert any("deployctl tunnel chat" in note for note in GUIDES["chatbox"](PINNED).notes)


def test_a_container_that_is_to_reach_this_machine_shares_its_network() -> None:
    assert "--network host" in GUIDES["openwebui"](LOCAL).text
    assert "--publish" in GUIDES["openwebui"](PINNED).text


def test_an_unknown_client_is_named_with_those_that_there_are() -> None:
    done = CliRunner().invoke(app, ["connect", "emacs"], prog_name="deployctl")
    assert done.exit_code == 2
    assert "openai, curl, langchain, litellm, chatbox, openwebui" in done.stderr


def test_the_page_names_every_client() -> None:
    page = (ROOT / "docs" / "clients.md").read_text()
    assert all(f"`{client}`" in page for client in GUIDES)


def test_a_fingerprint_is_the_one_that_openssl_and_browsers_show(tmp_path: Path) -> None:
    words = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", "/CN=x", "-keyout", "/dev/null"]
    pem = tmp_path / "x.pem"
    subprocess.run([*words, "-out", str(pem)], check=True, capture_output=True)
    shown = subprocess.run(
        ["openssl", "x509", "-in", str(pem), "-noout", "-fingerprint", "-sha256"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert shown.stdout.strip().rpartition("=")[2] == fingerprint(pem.read_text())
