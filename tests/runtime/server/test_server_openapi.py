"""The document of the API is true: requests made from it find no 5xx, no hang and no answer that it does not tell."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import KEY, MODEL, Server

from runtime.server.openapi import ANSWERS, EXAMPLES
from runtime.server.pages import PATHS

ROOT = Path(__file__).parents[3]
SCHEMATHESIS = Path(sysconfig.get_path("scripts")) / "st"
REQUEST_TIMEOUT_S = 20  # an answer that takes longer is a hang


@pytest.fixture
def lively(shared_server: Server, reply: Callable[[str], list[int]]) -> Iterator[Server]:
    """An engine that answers every request and is never taken for one that hangs."""
    engine = shared_server.engine
    engine.hang_after_s = 3600.0
    engine.heartbeat()
    reply("the quick fox")
    yield shared_server
    engine.hang_after_s = 30.0
    engine.heartbeat()


def run_schemathesis(server: Server, seed: int, *options: str) -> None:
    """Every check but one: much that no schema can express (a prompt's length in tokens) is rightly refused."""
    argv = [
        str(SCHEMATHESIS), "run", f"{server.url}/openapi.json", "--header", f"Authorization: Bearer {KEY}",
        "--checks", "all", "--exclude-checks", "positive_data_acceptance", "--request-timeout", str(REQUEST_TIMEOUT_S),
        "--generation-database", "none", "--seed", str(seed), "--no-color", *options,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": ""}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment, cwd=server.root)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "Traceback" not in server.log.read_text()
    assert server.health().status_code == 200


def test_requests_from_the_document_find_no_5xx_no_hang_and_no_untold_answer(lively: Server) -> None:
    run_schemathesis(lively, 1, "--phases", "examples,fuzzing", "--max-examples", "3", "--no-shrink")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [2, 3])
def test_many_requests_from_the_document_find_none_either(lively: Server, seed: int) -> None:
    run_schemathesis(lively, seed, "--phases", "examples,coverage,fuzzing", "--max-examples", "150")


def test_the_document_needs_a_key(server: Server) -> None:
    assert httpx.get(f"{server.url}/openapi.json").status_code == 401


def test_the_document_has_every_route_but_the_page_and_itself(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert document["paths"].keys() == ANSWERS.keys()
    assert not document["paths"].keys() & PATHS.keys()


@pytest.mark.parametrize("path", EXAMPLES)
def test_the_examples_of_the_document_are_answered(client: httpx.Client, lively: Server, path: str) -> None:
    operation: dict[str, Any] = client.get("/openapi.json").json()["paths"][path]["post"]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    assert example["model"] == MODEL
    answer = client.post(path, json=example)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].partition(";")[0] in operation["responses"]["200"]["content"]


def test_a_refusal_has_the_form_that_the_document_tells(client: httpx.Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    error = client.post("/v1/completions", json={"model": MODEL}).json()["error"]
    assert schemas["Envelope"]["properties"].keys() == {"error"}
    assert schemas["ErrorDetail"]["properties"].keys() == error.keys()
