"""Every route but /health needs a key."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute
from server_process import KEY, Server

from runtime.deployment import Deployment, EngineOptions, Listen, ModelSource
from runtime.server.app import create_app
from runtime.server.auth import KeyRing
from runtime.server.engine_client import EngineClient
from runtime.server.gate import OPEN_PATHS
from runtime.server.hold import Hold
from runtime.server.metrics import Metrics
from runtime.server.model import Model
from runtime.server.pages import PATHS
from runtime.server.rates import Rates
from runtime.server.request_log import RequestLog
from runtime.server.service import Service
from runtime.server.status import Readiness


def routes() -> list[tuple[str, str]]:
    """(method, path) of everything that the application routes."""
    nowhere = Path("/nonexistent")
    pool = ThreadPoolExecutor(1)
    engine = EngineClient(nowhere, "r", 1)
    model = Model(nowhere, pool)
    deployment = Deployment(
        name="n",
        release="r",
        target="local",
        model=ModelSource(source="demo", served_name="m"),
        engine=EngineOptions(dtype="float32", device="cpu", max_model_len=8, max_num_seqs=1),
        listen=Listen(),
    )
    readiness = Readiness(nowhere, engine, model, Hold(nowhere, "r", engine, model, 0.0, None))
    service = Service(
        deployment=deployment,
        engine=engine,
        model=model,
        readiness=readiness,
        keys=KeyRing(nowhere),
        metrics=Metrics("m"),
        rates=Rates(),
        log=RequestLog("off"),
        run_dir=nowhere,
        pool=pool,
        started=0,
    )
    app = create_app(service)
    found = [route for route in app.routes if isinstance(route, APIRoute)]
    assert len(found) == len(app.routes), "a route that this test does not see"
    return sorted((method, route.path) for route in found for method in route.methods or ())


GUARDED = [
    *(route for route in routes() if route[1] not in OPEN_PATHS),
    ("GET", "/no/such/path"),
    ("GET", "/docs"),
]


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Basic {KEY}", "Bearer", f"Bearer {KEY}x", KEY])
def test_without_a_valid_key_every_route_answers_401(
    server: Server, method: str, path: str, header: str | None
) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = httpx.request(method, server.url + path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_the_routes_are_those_of_the_api() -> None:
    assert {path for _, path in routes()} == {
        "/health",
        "/metrics",
        "/v1/models",
        "/v1/models/{name:path}",
        "/v1/chat/completions",
        "/v1/completions",
        "/tokenize",
        "/detokenize",
        "/version",
        "/openapi.json",
        *PATHS,
    }


def test_only_health_and_the_static_page_are_open() -> None:
    assert {"/health", "/", "/playground.css", "/playground.js"} == OPEN_PATHS


def test_health_needs_no_key(server: Server) -> None:
    answer = server.health()
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")


def test_the_scheme_of_the_header_may_be_written_in_any_case(server: Server) -> None:
    answer = httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"bearer {KEY}"})
    assert answer.status_code == 200
