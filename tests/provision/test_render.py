"""provision.render: what travels to the machine, and what does not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from provision.render import absolute, changes, render, stored_spec
from provision.spec import DeploymentSpec, parse
from runtime.deployment import EngineOptions, Predicted, decode_deployment, decode_keys
from runtime.mailbox import CURRENT, HUB_SECRET, KEYS, decode_current

KEY = "sk-a-secret-of-this-test"
ENGINE = EngineOptions(dtype="float32", device="cpu", max_model_len=2048, max_num_seqs=8)
PREDICTED = Predicted(weights_bytes=1, kv_bytes_per_token=2, kv_blocks=3, activation_bytes=4)


def spec(**values: object) -> DeploymentSpec:
    return parse({"name": "chat", "model": "demo", **values})


def objects(wanted: DeploymentSpec) -> dict[str, bytes]:
    return dict(render(wanted, ENGINE, PREDICTED, release="r7", api_key=KEY).objects)


def test_the_release_says_what_to_serve() -> None:
    found = objects(spec(port=8123, served_name="small"))
    deployment = decode_deployment(found["release/r7/deployment.json"])
    assert (deployment.name, deployment.release, deployment.target) == ("chat", "r7", "local")
    assert (deployment.model.source, deployment.model.served_name) == ("demo", "small")
    assert (deployment.engine, deployment.predicted) == (ENGINE, PREDICTED)
    assert (deployment.listen.host, deployment.listen.port) == ("127.0.0.1", 8123)


@pytest.mark.parametrize("mode", ["off", "redacted", "full"])
def test_the_machine_is_told_what_to_log_of_requests(mode: str) -> None:
    deployment = decode_deployment(objects(spec(request_log=mode))["release/r7/deployment.json"])
    assert deployment.request_log == mode


def test_requests_are_not_logged_unless_asked_for() -> None:
    assert decode_deployment(objects(spec())["release/r7/deployment.json"]).request_log == "off"


def test_the_pointer_to_the_release_is_written_last() -> None:
    order = render(spec(), ENGINE, PREDICTED, release="r7", api_key=KEY)
    key, data = order.objects[-1]
    assert key == CURRENT
    current = decode_current(data)
    assert current.release == "r7"
    assert {current.deployment, current.keys} <= {name for name, _ in order.objects[:-1]}


def test_the_key_travels_as_its_hash_only() -> None:
    order = render(spec(api_key=KEY), ENGINE, PREDICTED, release="r7", api_key=KEY)
    assert not any(KEY.encode() in data for _, data in order.objects)
    assert KEY.encode() not in order.spec
    [key] = decode_keys(dict(order.objects)[KEYS])
    assert key.sha256 == hashlib.sha256(KEY.encode()).hexdigest()


def test_the_hub_token_stands_in_the_secret_object_only() -> None:
    order = render(
        spec(model="hf:org/name", hub_token="hf_token_of_this_test"), ENGINE, PREDICTED, release="r7", api_key=KEY
    )
    holders = [name for name, data in order.objects if b"hf_token_of_this_test" in data]
    assert holders == [HUB_SECRET]
    assert b"hf_token_of_this_test" not in order.spec


def test_the_stored_spec_reads_back_to_the_same_spec() -> None:
    wanted = spec(max_model_len=4096, kv_cache_gib=1.5, served_name="small")
    assert parse(json.loads(stored_spec(wanted))) == wanted


def test_changes_name_the_field_and_both_values() -> None:
    found = changes(spec(max_model_len=4096, port=8001), spec(max_model_len=8192, served_name="small"))
    assert [str(item) for item in found] == [
        "served_name: (default) → small",
        "max_model_len: 4096 → 8192",
        "port: 8001 → (default)",
    ]


def test_equal_specs_have_no_changes() -> None:
    assert changes(spec(max_model_len=4096), spec(max_model_len="4096")) == []


def test_a_model_folder_becomes_absolute(tmp_path: Path) -> None:
    assert absolute(spec(model="./models/../m"), tmp_path).model == str(tmp_path / "m")
    assert absolute(spec(model="/m")).model == "/m"
    assert absolute(spec(model="demo")).model == "demo"
