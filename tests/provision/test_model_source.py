"""The shape of a model: from the catalog, a folder, or a hub (a real HTTP server on this machine)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from provision.catalog import MODELS
from provision.model_source import ModelSourceError, model_spec_for
from provision.spec import parse
from tests.lab.http_server import HttpServer

CONFIG = dict(MODELS["Qwen/Qwen2.5-7B-Instruct"].config)
TOKEN = "hf_right"


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does: config.json, 404 with X-Error-Code, 401 for a gated model without token."""

    def do_GET(self) -> None:
        if self.path in ("/org/open/resolve/main/config.json", "/models/org/open/resolve/master/config.json"):
            self._send(200, json.dumps(CONFIG).encode())
        elif self.path == "/org/gated/resolve/main/config.json":
            allowed = self.headers.get("authorization") == f"Bearer {TOKEN}"
            self._send(200 if allowed else 401, json.dumps(CONFIG).encode(), "" if allowed else "GatedRepo")
        elif self.path.startswith("/org/open/resolve/"):
            self._send(404, b"", "RevisionNotFound")
        elif self.path.startswith("/org/gguf/"):
            self._send(404, b"", "EntryNotFound")
        elif self.path.startswith("/org/down/"):
            self._send(503, b"")
        elif self.path.startswith("/org/html/"):
            self._send(200, b"<html>a login page</html>")
        else:
            self._send(404, b"", "RepoNotFound")

    def _send(self, status: int, body: bytes, code: str = "") -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        if code:
            self.send_header("x-error-code", code)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with HttpServer(Hub) as server:
        yield server.url


@pytest.fixture(scope="module")
def s3_address() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_bucket(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="weights")
    return "weights"


def failure(values: dict[str, object]) -> ModelSourceError:
    with pytest.raises(ModelSourceError) as caught:
        model_spec_for(parse(values))
    return caught.value


@pytest.mark.parametrize("model", ["demo", *MODELS, "modelscope:Qwen/QwQ-32B"])
def test_catalog_models_need_no_network(model: str) -> None:
    spec = parse(
        {"model": model, **({} if model == "demo" or ":" in model else {"hub_endpoint": "http://127.0.0.1:1"})}
    )
    assert model_spec_for(spec).num_layers > 0


def test_a_folder_is_read_from_its_config_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert model_spec_for(parse({"model": str(tmp_path)})).eos_token_ids == (7, 8)


def test_a_folder_that_is_no_model_says_what_is_missing(tmp_path: Path) -> None:
    error = failure({"model": str(tmp_path)})
    assert "no config.json" in (error.why or "")


def test_a_config_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert "config.json is not JSON" in failure({"model": str(tmp_path)}).what


def test_a_model_of_another_family_is_refused_with_the_field(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"architectures": ["GPT2LMHeadModel"]}))
    assert "architectures" in (failure({"model": str(tmp_path)}).why or "")


@pytest.mark.parametrize(
    "wrong", [{"rope_scaling": [1]}, {"head_dim": "x"}, {"rms_norm_eps": {}}, {"quantization_config": [1]}]
)
def test_a_malformed_config_is_an_error_and_not_a_traceback(tmp_path: Path, wrong: dict[str, object]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | wrong))
    assert failure({"model": str(tmp_path)}).what.endswith("cannot be served")


def test_rope_scaling_of_the_spec_lifts_the_context() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    spec = parse({"model": "Qwen/Qwen2.5-7B-Instruct", "rope_scaling": scaling})
    assert model_spec_for(spec).max_position == 131072


def test_a_hub_model_is_read_from_the_endpoint_that_the_spec_names(hub: str) -> None:
    spec = parse({"model": "org/open", "hub_endpoint": hub})
    assert model_spec_for(spec).num_heads == 28


def test_the_token_opens_a_gated_model(hub: str) -> None:
    spec = parse({"model": "org/gated", "hub_endpoint": hub, "hub_token": TOKEN})
    assert model_spec_for(spec).num_heads == 28


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("org/gated", "gated"),
        ("org/open@v9", "no revision 'v9'"),
        ("org/gguf", "no config.json"),
        ("org/nothing", "no such model"),
        ("org/down", "HTTP 503"),
    ],
)
def test_each_refusal_of_the_hub_is_said_in_words(hub: str, model: str, reason: str) -> None:
    error = failure({"model": model, "hub_endpoint": hub})
    assert reason in (error.why or "")
    assert error.next_command


def test_an_answer_that_is_not_json_is_named(hub: str) -> None:
    assert "is not JSON" in failure({"model": "org/html", "hub_endpoint": hub}).what


def test_a_misspelt_catalog_model_gets_a_suggestion(hub: str) -> None:
    error = failure({"model": "Qwen/QwQ-23B", "hub_endpoint": hub})
    assert "did you mean Qwen/QwQ-32B" in (error.why or "")


def test_a_hub_that_cannot_be_reached_says_so_and_names_the_mirror_option() -> None:
    error = failure({"model": "org/open", "hub_endpoint": "http://127.0.0.1:1"})
    assert "http://127.0.0.1:1 cannot be reached" in (error.why or "")
    assert "--hub-endpoint" in (error.next_command or "")


def test_a_model_in_a_bucket_is_read_with_the_credentials_of_the_user(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3.client("s3").put_object(Bucket=s3_bucket, Key="mine/config.json", Body=json.dumps(CONFIG).encode())
    assert model_spec_for(parse({"cloud": "aws", "model": f"s3://{s3_bucket}/mine"})).num_heads == 28


def test_a_bucket_without_a_config_is_no_model_and_names_the_way_to_fill_it(s3_bucket: str) -> None:
    error = failure({"cloud": "aws", "model": f"s3://{s3_bucket}/nothing"})
    assert "no config.json" in (error.why or "")
    assert error.next_command == "deployctl weights push --help"


def test_a_model_of_modelscope_is_read_from_its_hub(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub)
    spec = parse({"cloud": "alicloud", "model": "modelscope:org/open"})
    assert model_spec_for(spec).num_heads == 28
