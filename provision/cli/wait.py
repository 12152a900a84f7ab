"""`deployctl wait`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from provision.cli.output import JsonFlag, emit_json, say
from provision.errors import UsageError

app = typer.Typer(add_completion=False)
KEY_VARIABLE = "DEPLOYCTL_API_KEY"


@app.command()
def wait(
    cloud: Annotated[str, typer.Option(help="aws or alicloud.")],
    region: Annotated[str, typer.Option(help="The deployment's region.")],
    bucket: Annotated[str, typer.Option(help="Its mailbox: the stack's output `mailbox`.")],
    base_url: Annotated[str, typer.Option(help="Its endpoint: the stack's output `endpoint`.")],
    release: Annotated[str, typer.Option(help="The release to wait for: the stack's output `release`.")],
    name: Annotated[str, typer.Option(help="The deployment's name.")],
    endpoint: Annotated[
        str | None, typer.Option(help="Address of the object store, where it is not the cloud's own.")
    ] = None,
    instance_id: Annotated[
        str | None, typer.Option(help="Reports of any other instance are old ones: the output `instance_id`.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Wait until a cloud deployment answers, by its mailbox; the Pulumi program runs this.

    Progress goes to stderr; stdout gets one JSON object, with and without --json: {"state", "certificate", "release"}.
    The API key is read from the variable DEPLOYCTL_API_KEY; with it, one completion is asked for at the end.
    """
    if cloud not in ("aws", "alicloud"):
        raise UsageError(f"--cloud: {cloud!r} is not a cloud", why="aws and alicloud are")
    from provision.waiting import Wanted, try_endpoint, wait_for_release

    wanted = Wanted(
        name=name,
        provider="aws" if cloud == "aws" else "alicloud",
        region=region,
        bucket=bucket,
        base_url=base_url,
        release=release,
        store=endpoint,
        instance_id=instance_id,
    )
    found = wait_for_release(wanted)
    key = os.environ.get(KEY_VARIABLE)
    if key and found.state == "ready":
        say(f"  {try_endpoint(wanted, found, key)}")
    emit_json({"state": found.state, "certificate": found.certificate, "release": found.release})
