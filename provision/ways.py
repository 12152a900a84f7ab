"""Ways to a machine: straight over the network, or through the cloud where it has no public address. Pure.

    public address          SSH
    AWS, intranet           SSH through the EC2 Instance Connect Endpoint that the deployment has made, or through
                            Systems Manager where the network is the user's own
    Alibaba Cloud, intranet Cloud Assistant's session; SSH and tunnels through its port forwarding

Each way says which programs of the cloud it needs. Not yet run on a real cloud: argument lists are those of the tools'
own documents.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Literal

from provision.errors import MissingPartError
from provision.ssh import PORT

Cloud = Literal["aws", "alicloud"]

_AWS_PAGE = "https://docs.aws.amazon.com/cli/latest/userguide/getting-started-install.html"
_PLUGIN_PAGE = (
    "https://docs.aws.amazon.com/systems-manager/latest/userguide/session-manager-working-with-install-plugin.html"
)
_ALI = "https://aliyun-client-assist.oss-accelerate.aliyuncs.com/session-manager/linux/ali-instance-cli"
TOOLS = {
    "ssh": "apt-get install openssh-client",
    "aws": f"install the AWS CLI, version 2: {_AWS_PAGE}",
    "session-manager-plugin": f"install the Session Manager plugin: {_PLUGIN_PAGE}",
    "ali-instance-cli": f"curl -o ~/.local/bin/ali-instance-cli {_ALI} && chmod 755 ~/.local/bin/ali-instance-cli && "
    "ali-instance-cli configure",
}


@dataclass(frozen=True, slots=True)
class Direct:
    """An address that this machine can connect to, if the firewall lets it."""

    address: str


@dataclass(frozen=True, slots=True)
class ConnectEndpoint:
    """AWS: a tunnel to the machine's port 22 through the endpoint in its subnet."""

    instance_id: str
    region: str


@dataclass(frozen=True, slots=True)
class SessionManager:
    """AWS: a tunnel to the machine's port 22 through the SSM agent, which needs a way out (NAT, or SSM's endpoints)."""

    instance_id: str
    region: str


@dataclass(frozen=True, slots=True)
class CloudAssistant:
    """Alibaba Cloud: its agent's session and port forwarding. Session Manager is switched on once per account."""

    instance_id: str
    region: str


Way = Direct | ConnectEndpoint | SessionManager | CloudAssistant


def choose_way(
    cloud: Cloud, region: str, instance_id: str, *, public_ip: str | None, private_ip: str | None, own_network: bool
) -> Way:
    """`own_network`: the VPC is the user's, where the deployment makes no endpoint for connections. A machine that has
    only a private address is not tried directly: whether this machine is in its network cannot be known."""
    if public_ip is not None:
        return Direct(public_ip)
    if cloud == "alicloud":
        return CloudAssistant(instance_id, region)
    return SessionManager(instance_id, region) if own_network else ConnectEndpoint(instance_id, region)


def tools_of(way: Way) -> tuple[str, ...]:
    """Programs that must be on PATH."""
    if isinstance(way, ConnectEndpoint):
        return ("ssh", "aws")
    if isinstance(way, SessionManager):
        return ("ssh", "aws", "session-manager-plugin")
    return ("ssh", "ali-instance-cli") if isinstance(way, CloudAssistant) else ("ssh",)


def proxy_argv(way: Way) -> tuple[str, ...]:
    """A program whose standard input and output are a connection to the machine's SSH server; empty = TCP."""
    if isinstance(way, ConnectEndpoint):
        tunnel = ("aws", "ec2-instance-connect", "open-tunnel", "--region", way.region)
        return (*tunnel, "--instance-id", way.instance_id)
    if isinstance(way, SessionManager):
        words = ("aws", "ssm", "start-session", "--region", way.region, "--target", way.instance_id)
        return (*words, "--document-name", "AWS-StartSSHSession", "--parameters", f"portNumber={PORT}")
    return ()


def session_argv(way: CloudAssistant) -> list[str]:
    """A shell without SSH and without a key: the cloud account is what lets one in."""
    return ["ali-instance-cli", "session", "--instance", way.instance_id, "--region", way.region]


def forward_argv(way: CloudAssistant, local_port: int, remote_port: int) -> list[str]:
    """127.0.0.1:`local_port` here leads to `remote_port` there, until it ends."""
    ports = ["--local-port", str(local_port), "--remote-port", str(remote_port)]
    return ["ali-instance-cli", "portforward", "--instance", way.instance_id, *ports, "--region", way.region]


def require_tools(way: Way) -> None:
    """Raises MissingPartError that names what is missing and how to get it."""
    missing = [tool for tool in tools_of(way) if shutil.which(tool) is None]
    if missing:
        raise MissingPartError(
            f"{missing[0]} is not on PATH, and this machine is reached through it",
            why=describe(way),
            next_command=TOOLS[missing[0]],
        )


def describe(way: Way) -> str:
    """For people: how the machine is reached."""
    if isinstance(way, Direct):
        return f"SSH to {way.address}"
    if isinstance(way, ConnectEndpoint):
        return f"{way.instance_id} has no public address: SSH through its EC2 Instance Connect Endpoint"
    if isinstance(way, SessionManager):
        return f"{way.instance_id} has no public address: SSH through AWS Systems Manager"
    return (
        f"{way.instance_id} has no public address: Cloud Assistant's Session Manager, which is switched on once per "
        "account (ECS console, Connect, Session Manager)"
    )
