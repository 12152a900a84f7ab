"""provision.ways: how a machine is reached, and which programs that needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.errors import MissingPartError
from provision.ways import (
    TOOLS,
    CloudAssistant,
    ConnectEndpoint,
    Direct,
    SessionManager,
    Way,
    choose_way,
    describe,
    forward_argv,
    proxy_argv,
    require_tools,
    session_argv,
    tools_of,
)

ENDPOINT = ConnectEndpoint("i-0a", "eu-west-1")
SSM = SessionManager("i-0a", "eu-west-1")
ASSISTANT = CloudAssistant("i-bp1", "cn-hangzhou")


def test_a_public_address_is_reached_directly_on_either_cloud() -> None:
    for cloud in ("aws", "alicloud"):
        way = choose_way(cloud, "r", "i", public_ip="203.0.113.7", private_ip="10.0.0.4", own_network=False)
        assert way == Direct("203.0.113.7")


@pytest.mark.parametrize(
    ("cloud", "own_network", "way"),
    [("aws", False, ENDPOINT), ("aws", True, SSM), ("alicloud", False, ASSISTANT), ("alicloud", True, ASSISTANT)],
)
def test_without_one_the_cloud_leads_there(cloud: str, own_network: bool, way: Way) -> None:
    assert not isinstance(way, Direct)
    name = "aws" if cloud == "aws" else "alicloud"
    found = choose_way(
        name, way.region, way.instance_id, public_ip=None, private_ip="10.0.0.4", own_network=own_network
    )
    assert found == way


def test_aws_carries_ssh() -> None:
    assert proxy_argv(ENDPOINT) == (
        "aws", "ec2-instance-connect", "open-tunnel", "--region", "eu-west-1", "--instance-id", "i-0a",
    )  # fmt: skip
    assert proxy_argv(SSM) == (
        "aws", "ssm", "start-session", "--region", "eu-west-1", "--target", "i-0a",
        "--document-name", "AWS-StartSSHSession", "--parameters", "portNumber=22",
    )  # fmt: skip
    assert proxy_argv(Direct("203.0.113.7")) == ()


def test_alibaba_has_a_session_and_forwards_ports() -> None:
    place = ["--instance", "i-bp1"]
    region = ["--region", "cn-hangzhou"]
    assert session_argv(ASSISTANT) == ["ali-instance-cli", "session", *place, *region]
    ports = ["--local-port", "9000", "--remote-port", "8000"]
    assert forward_argv(ASSISTANT, 9000, 8000) == ["ali-instance-cli", "portforward", *place, *ports, *region]


@pytest.mark.parametrize("way", [Direct("203.0.113.7"), ENDPOINT, SSM, ASSISTANT])
def test_a_missing_program_is_named_with_how_to_get_it(
    way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each program is missing once, the ones before it are there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for tool in tools_of(way):
        with pytest.raises(MissingPartError, match=f"{tool} is not on PATH") as error:
            require_tools(way)
        assert error.value.next_command == TOOLS[tool]
        (tmp_path / tool).touch(0o755)
    require_tools(way)


def test_each_way_is_described_with_its_machine() -> None:
    assert [name for way in (ENDPOINT, SSM, ASSISTANT) if (name := way.instance_id) not in describe(way)] == []
