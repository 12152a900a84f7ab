"""`deployctl endpoint`."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Annotated

import typer

from provision.cli.names import NameArgument, NameOption, find_target
from provision.cli.output import JsonFlag, emit, emit_json
from provision.target import Access

app = typer.Typer(add_completion=False)

EnvFlag = Annotated[bool, typer.Option("--env", help='Print `export` lines: eval "$(deployctl endpoint --env)".')]


@app.command()
def endpoint(
    name: NameArgument = None, name_option: NameOption = None, env: EnvFlag = False, json: JsonFlag = False
) -> None:
    """Print the base URL, the API key and the model's name.

    --env prints lines for the shell, so that any OpenAI client finds the endpoint.
    """
    access = find_target(name, name_option).access()
    if json:
        emit_json(dataclasses.asdict(access))
    elif env:
        emit(env_lines(access))
    else:
        emit(f"base URL  {access.base_url}\nAPI key   {access.api_key}\nmodel     {access.model}")


def env_lines(access: Access) -> str:
    """Shell lines that set what OpenAI clients read; every value is quoted."""
    values = {
        "OPENAI_BASE_URL": access.base_url,
        "OPENAI_API_KEY": access.api_key,
        "OPENAI_MODEL": access.model,
    }
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in values.items())
