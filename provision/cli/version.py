"""`deployctl version`."""

from __future__ import annotations

import importlib.metadata
import platform

import typer

from provision.cli.output import JsonFlag, emit, emit_json

PARTS = ("torch", "transformers", "pulumi", "boto3", "alibabacloud-oss-v2")

app = typer.Typer(add_completion=False)


@app.command()
def version(json: JsonFlag = False) -> None:
    """Print the versions of deployctl, Python and the optional parts that are installed."""
    found = {
        "deployctl": installed("deployctl") or "unknown (not installed)",
        "python": platform.python_version(),
    }
    found |= {part: number for part in PARTS if (number := installed(part))}
    if json:
        emit_json(found)
        return
    for name, number in found.items():
        emit(f"{name} {number}")


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
