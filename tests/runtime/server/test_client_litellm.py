"""LiteLLM, as it comes: whole, streamed, asynchronous, with tools; and it understands a refusal.

It wants an older openai package than the one under test, so it lives in a virtual environment of its own, in the cache.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server_process import KEY, MODEL, Server
from tool_model import write_tool_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PROGRAM = Path(__file__).with_name("litellm_program.py")


@pytest.fixture(scope="module")
def found(
    litellm_python: Path,
    make_server: Callable[..., Server],
    model_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """What the program saw of a server whose engine always says the same."""
    server = make_server(weights=False)
    folder = write_tool_model(tmp_path_factory.mktemp("tools"), model_folder)
    server.write_weights(folder)
    server.engine.start()
    server.launch()
    server.wait_healthy()
    server.engine.reply = [*range(40, 60)]
    done = subprocess.run(
        [litellm_python, PROGRAM, server.url, KEY, MODEL],
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with server.http() as client:
        text = client.post("/detokenize", json={"tokens": server.engine.reply}).json()["prompt"]
    return {**json.loads(done.stdout.splitlines()[-1]), "text": text}


def test_an_answer_comes_whole_with_its_usage(found: Any) -> None:
    assert found["whole"] == found["text"]
    assert found["completion_tokens"] == 21


def test_an_answer_comes_in_pieces(found: Any) -> None:
    assert "".join(found["pieces"]) == found["text"]


def test_answers_come_asynchronously(found: Any) -> None:
    assert found["streamed"] == found["text"]
    assert found["many"] == [found["text"]] * 4


def test_tools_may_be_offered(found: Any) -> None:
    assert found["offered"] == found["text"]


def test_a_refusal_is_understood_as_one(found: Any) -> None:
    assert "n: " in found["refused"]
