"""Options of `up` and `plan` that are about the first meeting with a machine over SSH."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provision.errors import UsageError

if TYPE_CHECKING:
    from provision.spec import DeploymentSpec

HostKeyOption = Annotated[
    str | None,
    typer.Option("--host-key", help="With --host: its host key or the key's fingerprint, SHA256:…", show_default=False),
]
HostIdentityOption = Annotated[
    Path | None,
    typer.Option(
        "--identity", "-i", help="With --host: the private key to log in with; else your agent's.", show_default=False
    ),
]


def refuse_without_host(spec: DeploymentSpec, host_key: str | None, identity: Path | None) -> None:
    """Raises UsageError for an option that would be ignored."""
    given = [name for name, value in (("--host-key", host_key), ("--identity", identity)) if value is not None]
    if spec.cloud != "host" and given:
        raise UsageError(
            f"{given[0]} is for a machine over SSH, and this is {spec.cloud}",
            next_command="deployctl up --host user@address",
        )
