"""The spec: what is accepted, and how everything else is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from provision.fields import FIELDS, SECRETS
from provision.spec import DeploymentSpec, Problem, SpecError, parse

KEY = "a-key-of-the-users-own-1"
AWS: dict[str, Any] = {"cloud": "aws"}
ALI: dict[str, Any] = {"cloud": "alicloud"}
INTRANET: dict[str, Any] = {"cloud": "aws", "endpoint": "intranet"}
SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGk5 me@laptop"


def problems(values: dict[str, Any]) -> tuple[Problem, ...]:
    with pytest.raises(SpecError) as caught:
        parse(values)
    return caught.value.problems


def only(values: dict[str, Any]) -> Problem:
    found = problems(values)
    assert len(found) == 1, [str(item) for item in found]
    return found[0]


def test_nothing_given_is_the_demo_on_this_machine() -> None:
    spec = parse({})
    assert (spec.cloud, spec.model, spec.port, spec.tls, spec.ttl_seconds) == ("local", "demo", 8000, "off", 0)


@pytest.mark.parametrize(
    ("values", "model"),
    [
        ({**ALI, "model": "Qwen/Qwen3-32B"}, "modelscope:Qwen/Qwen3-32B"),
        ({**ALI, "model": " Qwen/Qwen3-32B@v1 ", "region": "cn-beijing"}, "modelscope:Qwen/Qwen3-32B@v1"),
        ({**ALI, "model": "hf:Qwen/Qwen3-32B"}, "hf:Qwen/Qwen3-32B"),
        ({**ALI, "model": "Qwen/Qwen3-32B", "hub_endpoint": "https://hub.example.org"}, "hf:Qwen/Qwen3-32B"),
        ({**ALI, "model": "Qwen/Qwen3-32B", "region": "ap-southeast-1"}, "hf:Qwen/Qwen3-32B"),
        ({**ALI, "model": "Qwen/Qwen3-32B", "region": "cn-hongkong"}, "hf:Qwen/Qwen3-32B"),
        ({**AWS, "model": "Qwen/Qwen3-32B"}, "hf:Qwen/Qwen3-32B"),
    ],
)
def test_a_bare_name_comes_from_modelscope_in_mainland_china_only(values: dict[str, Any], model: str) -> None:
    spec = parse(values)
    assert (spec.model, spec.api_model_name) == (model, "Qwen/Qwen3-32B")
    assert parse(spec.public_values()) == spec


@pytest.mark.parametrize("egress", ["bundle", "none"])
@pytest.mark.parametrize(
    ("cloud", "model", "bucket"),
    [
        ("aws", "hf:org/name", "s3://bucket/prefix"),
        ("alicloud", "hf:org/name", "oss://bucket/prefix"),
        ("alicloud", "org/name", "oss://bucket/prefix"),
    ],
)
def test_without_a_way_out_the_weights_must_be_in_a_bucket(egress: str, cloud: str, model: str, bucket: str) -> None:
    intranet = {"cloud": cloud, "endpoint": "intranet", "egress": egress}
    found = only({**intranet, "model": model})
    assert (found.path, found.nearest) == ("model", bucket)
    assert "deployctl weights push" in found.reason
    assert parse({**intranet, "model": bucket}).egress == egress


def test_modelscope_is_for_alibabas_machines() -> None:
    found = only({**AWS, "model": "modelscope:org/name"})
    assert (found.path, found.nearest) == ("model", "hf:org/name")


def test_a_cloud_brings_its_own_defaults() -> None:
    spec = parse({"cloud": "alicloud", "endpoint": "intranet"})
    assert (spec.region, spec.ttl, spec.tls, spec.egress) == ("cn-hangzhou", "8h", "pinned", "nat")


def test_words_and_types_name_the_same_fields() -> None:
    assert [field.name for field in FIELDS] != []
    assert {field.name for field in FIELDS} == set(DeploymentSpec.model_fields)


def test_every_error_is_reported_at_once_single_values_and_combinations() -> None:
    found = problems(
        {
            "nmae": "x",
            "max_model_len": "many",
            "dtype": "bf16",
            "cloud": "aws",
            "instance_type": ["ecs.gn7i-4x.16xlarge"],
            "endpoint": "intranet",
            "allowed_cidrs": ["0.0.0.0/0"],
            "rope_scaling": {"rope_type": "yarn", "factr": 4},
        }
    )
    assert [item.path for item in found] == [
        "nmae",
        "instance_type",
        "max_model_len",
        "rope_scaling.factor",
        "rope_scaling.factr",
        "dtype",
        "allowed_cidrs",
    ]


def test_a_combination_with_a_wrong_value_is_not_judged() -> None:
    assert [item.path for item in problems({"cloud": "awss", "instance_type": ["g5.xlarge"]})] == ["cloud"]


@pytest.mark.parametrize(
    ("values", "path", "nearest"),
    [
        ({"modle": "demo"}, "modle", "model"),
        ({"cloud": "alicluod"}, "cloud", "alicloud"),
        ({"name": "My Bot"}, "name", "my-bot"),
        ({"dtype": "bf16"}, "dtype", "bfloat16"),
        ({"port": 0}, "port", "1"),
        ({"port": 70000}, "port", "65535"),
        ({"gpu_memory_utilization": 1.0}, "gpu_memory_utilization", "0.98"),
        ({"model": "Qwen/QwQ 32B"}, "model", "Qwen/QwQ-32B"),
        ({"rope_scaling": {"rope_type": "yarm", "factor": 2}}, "rope_scaling.rope_type", "yarn"),
        ({**AWS, "region": "us-esat-1"}, "region", "us-east-1"),
        ({**AWS, "region": "eu-central-1", "zones": "eu-west-1a"}, "zones", "eu-central-1a"),
        ({**ALI, "zones": "cn-shanghai-b"}, "zones", "cn-hangzhou-b"),
        ({**AWS, "instance_type": "g6e.xlrage"}, "instance_type", "g6e.xlarge"),
        ({"engine": "vllm"}, "engine", "bundled"),
        ({"engine": "sglang"}, "engine", "bundled"),
        ({**AWS, "billing": "monthly"}, "billing", "hourly"),
        ({**AWS, "ttl": "10m"}, "ttl", "30m"),
        ({"quantization": "fp16"}, "quantization", "fp8"),
    ],
)
def test_a_wrong_value_comes_with_the_nearest_valid_one(values: dict[str, Any], path: str, nearest: str) -> None:
    found = only(values)
    assert (found.path, found.nearest) == (path, nearest)


@pytest.mark.parametrize(
    ("values", "path", "reason"),
    [
        ({"max_model_len": 8}, "max_model_len", "16"),
        ({"max_model_len": True}, "max_model_len", "not a number"),
        ({"kv_cache_gib": 0}, "kv_cache_gib", "greater than 0"),
        ({"kv_cache_gib": float("nan")}, "kv_cache_gib", "finite"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": float("inf")}}, "rope_scaling.factor", "finite"),
        ({"api_key": "short"}, "api_key", "has 5 characters"),
        ({"api_key": "with spaces in the key!!"}, "api_key", "printable ASCII"),
        ({**AWS, "ttl": "tomorrow"}, "ttl", "not a time"),
        ({**AWS, "ttl": "400d"}, "ttl", "over a year"),
        ({**AWS, "idle_stop": "1m"}, "idle_stop", "5 minutes"),
        ({**AWS, "allowed_cidrs": "10.0.0.0/33"}, "allowed_cidrs.0", "not an address range"),
        ({**AWS, "allowed_cidrs": "10.0.0.1/8"}, "allowed_cidrs.0", "write 10.0.0.0/8"),
        ({**AWS, "allowed_cidrs": "::/0"}, "allowed_cidrs.0", "IPv6"),
        ({"hub_endpoint": "ftp://x", "model": "a/b"}, "hub_endpoint", "https://"),
        ({**AWS, "tags": "team"}, "tags", "key=value"),
        ({**AWS, "tags": {"aws:x": "y"}}, "tags", "prefix"),
        ({**AWS, "ssh_public_key": "hello"}, "ssh_public_key", ".pub"),
        ({**AWS, "ssh_public_key": "-----BEGIN OPENSSH PRIVATE KEY-----"}, "ssh_public_key", "private key"),
        ({"rope_scaling": "{"}, "rope_scaling", "not JSON"),
        ({"model": "s3://"}, "model", "s3://bucket/prefix"),
        ({**AWS, "disk_gib": 5}, "disk_gib", "40"),
    ],
)
def test_a_wrong_value_is_refused_with_the_reason(values: dict[str, Any], path: str, reason: str) -> None:
    found = only(values)
    assert found.path == path
    assert reason in found.reason


@pytest.mark.parametrize(
    ("values", "path", "reason"),
    [
        ({"region": "us-east-1"}, "region", "needs cloud"),
        ({"ttl": "4h"}, "ttl", "needs cloud"),
        ({"spot": True}, "spot", "needs cloud"),
        ({"endpoint": "intranet"}, "endpoint", "VPC"),
        ({"tls": "pinned"}, "tls", "127.0.0.1"),
        ({"proxy": "http://p:1"}, "proxy", "local"),
        ({"cloud": "host"}, "host", "user@address"),
        ({"cloud": "local", "host": "me@there"}, "host", "cloud: host"),
        ({**AWS, "region": "cn-beijing"}, "region", "region of alicloud"),
        ({**AWS, "instance_type": "ecs.gn7i-4x.16xlarge"}, "instance_type", "type of alicloud"),
        ({**INTRANET, "allowed_cidrs": "0.0.0.0/0"}, "allowed_cidrs", "intranet"),
        ({**AWS, "egress": "nat"}, "egress", "endpoint: intranet"),
        ({**AWS, "bandwidth_mbps": 100}, "bandwidth_mbps", "AWS"),
        ({**ALI, "endpoint": "intranet", "bandwidth_mbps": 100}, "bandwidth_mbps", "endpoint: public"),
        ({**AWS, "subnet_id": "subnet-1"}, "subnet_id", "vpc_id"),
        ({**AWS, "security_group_id": "sg-1"}, "security_group_id", "vpc_id"),
        ({**ALI, "vpc_id": "vpc-1", "subnet_id": "subnet-1"}, "subnet_id", "vsw-"),
        (
            {**AWS, "vpc_id": "vpc-1", "subnet_id": "subnet-1", "zones": "us-east-1a,us-east-1b"},
            "zones",
            "one zone",
        ),
        ({**AWS, "image": "m-123"}, "image", "ami-"),
        ({**AWS, "tls": "acme"}, "domain", "missing"),
        ({**INTRANET, "tls": "acme", "domain": "a.example.org"}, "tls", "endpoint: public"),
        ({**AWS, "domain": "a.example.org"}, "domain", "acme or own"),
        ({**AWS, "tls": "own", "tls_cert": "c.pem"}, "tls_key", "missing"),
        ({**AWS, "tls_cert": "c.pem"}, "tls_cert", "tls: own"),
        ({**AWS, "spot": True, "capacity_reservation": "cr-1"}, "capacity_reservation", "spot"),
        ({**AWS, "spot": True, "idle_stop": "30m"}, "idle_stop", "cannot be stopped"),
        (
            {**AWS, "capacity_reservation": "cr-1", "instance_type": "g5.xlarge,g6.xlarge"},
            "instance_type",
            "one type",
        ),
        ({**AWS, "model": "./folder"}, "model", "cannot be seen"),
        ({**AWS, "model": "oss://bucket/x"}, "model", "not a bucket of aws"),
        ({**ALI, "model": "s3://bucket/x"}, "model", "not a bucket of alicloud"),
        ({"hub_endpoint": "https://hub.example.org"}, "hub_endpoint", "hf: models"),
        ({"hub_token": "hf_x"}, "hub_token", "hub models"),
        ({"kv_cache_gib": 2, "gpu_memory_utilization": 0.9}, "kv_cache_gib", "both"),
    ],
)
def test_combinations_that_contradict_themselves_are_refused(values: dict[str, Any], path: str, reason: str) -> None:
    found = only(values)
    assert found.path == path
    assert reason in found.reason


@pytest.mark.parametrize(
    "values",
    [
        {**AWS, "spot": True, "ttl": "0", "allowed_cidrs": "203.0.113.7"},
        {**AWS, "tls": "own", "tls_cert": "c.pem", "tls_key": "k.pem", "domain": "llm.example.org"},
        {**AWS, "tls": "acme", "domain": "llm.example.org", "tags": "team=search,env=test"},
        {**INTRANET, "egress": "bundle", "vpc_id": "vpc-1", "subnet_id": "subnet-1", "zones": "us-east-1a"},
        {**ALI, "zones": ["cn-hangzhou-i", "cn-hangzhou-b"], "bandwidth_mbps": 200, "ssh_public_key": SSH_KEY},
        {**ALI, "region": "ap-southeast-1", "zones": "ap-southeast-1a", "model": "modelscope:Qwen/QwQ-32B"},
        {**ALI, "model": "oss://bucket/prefix", "idle_stop": "30m"},
        {"model": "~/models/mine", "served_name": "mine", "kv_cache_gib": "1.5", "max_num_seqs": "32"},
        {"cloud": "host", "host": "ubuntu@10.0.0.5", "model": "hf:Qwen/QwQ-32B@main"},
        {"rope_scaling": '{"rope_type": "yarn", "factor": 4}', "api_key": KEY},
    ],
)
def test_sensible_specs_are_accepted(values: dict[str, Any]) -> None:
    assert parse(values).cloud == values.get("cloud", "local")


def test_text_as_flags_and_pulumi_carry_it_means_the_same_as_yaml() -> None:
    text = parse({**AWS, "max_model_len": "8192", "spot": "true", "zones": "us-east-1a, us-east-1b"})
    typed = parse({**AWS, "max_model_len": 8192, "spot": True, "zones": ["us-east-1a", "us-east-1b"]})
    assert text == typed


def test_secrets_are_never_printed() -> None:
    spec = parse({"model": "a/b", "api_key": KEY, "hub_token": "hf_very_secret"})
    for text in (repr(spec), str(spec.model_dump()), spec.model_dump_json(), str(spec.public_values())):
        assert KEY not in text
        assert "hf_very_secret" not in text


def test_a_wrong_secret_is_not_shown_in_the_error() -> None:
    with pytest.raises(SpecError) as caught:
        parse({"api_key": "tooshortsecret"})
    assert "tooshortsecret" not in str(caught.value)


def test_a_secret_of_the_wrong_type_is_not_shown_in_the_error() -> None:
    with pytest.raises(SpecError) as caught:
        parse({"api_key": ["my", "secret", "list"]})
    assert "secret" not in str(caught.value).replace("SecretStr", "")


def test_stored_values_read_back_as_the_same_spec() -> None:
    spec = parse({**AWS, "zones": "us-east-1a", "rope_scaling": {"rope_type": "yarn", "factor": 4}, "tags": "a=b"})
    assert parse(spec.public_values()) == spec


def test_stored_values_hold_no_secret_field() -> None:
    assert not set(SECRETS) & set(parse({"model": "a/b", "api_key": KEY, "hub_token": "t"}).public_values())


def test_a_spec_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parse({}).port = 1


def test_a_spec_cannot_be_built_around_the_rules() -> None:
    with pytest.raises(SpecError, match="error"):
        DeploymentSpec(spot=True)
