"""The programs that `deployctl connect` prints, run as they are against the real server over TLS."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from engine_double import poll
from server_process import KEY, MODEL, Server

from provision.cli.connect import endpoint_of
from provision.connect import GUIDES
from provision.target import Access
from runtime.agent.files import PRIVATE
from runtime.agent.identity import Keeper
from runtime.agent.serving import probe_health

ANSWER = "the quick brown fox"
PROGRAMS = ["curl", "openai", "langchain", pytest.param("litellm", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Keeper:
    keeper = Keeper(tmp_path_factory.mktemp("tls"), PRIVATE)
    keeper.ensure_pinned("i-1", ("127.0.0.1",), datetime.now(UTC))
    return keeper


@pytest.fixture(scope="module")
def shared_server(make_server: Callable[..., Server], keeper: Keeper) -> Server:
    server = make_server()
    server.tls = keeper.certificate_file.parent
    server.engine.start()
    server.launch()
    port = urlsplit(server.url).port or 0

    def is_ready() -> bool:
        health = probe_health("127.0.0.1", port, keeper.leaf())
        return health is not None and health.ready

    poll(is_ready, "the server is ready")
    return server


@pytest.mark.parametrize("client", PROGRAMS)
def test_the_program_asks_the_endpoint_and_prints_its_answer(
    client: str,
    server: Server,
    keeper: Keeper,
    reply: Callable[[str], list[int]],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    python = request.getfixturevalue("litellm_python") if client == "litellm" else sys.executable
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    reply(ANSWER)
    access = Access(f"{server.url}/v1", KEY, MODEL, 256, keeper.certificate_file.read_text())
    guide = GUIDES[client](endpoint_of("chat", access, show_key=False))
    argv = [python, "-c", guide.text] if guide.language == "python" else ["sh", "-c", guide.text]
    done = subprocess.run(
        argv, env={**os.environ, "OPENAI_API_KEY": KEY}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ANSWER in done.stdout
