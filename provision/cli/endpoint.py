"""`deployctl endpoint`."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
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
    target = find_target(name, name_option)
    access = target.access()
    if json:
        emit_json(dataclasses.asdict(access))
    elif env:
        emit(env_lines(access, trust_variables(target.name, access.certificate)))
    else:
        emit(f"base URL  {access.base_url}\nAPI key   {access.api_key}\nmodel     {access.model}")
        if access.certificate is not None:
            emit(f"trust     {trust_variables(target.name, access.certificate)['NODE_EXTRA_CA_CERTS']}")


def trust_variables(name: str, certificate: str | None) -> dict[str, str]:
    """What makes Python, curl and Node.js trust the endpoint beside all others; writes the files that it names."""
    if certificate is None:
        return {}
    from provision.trust import bundle_file, pin_file

    bundle = str(bundle_file(name, certificate))
    known = dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), bundle)
    return known | {"NODE_EXTRA_CA_CERTS": str(pin_file(name, certificate))}


def env_lines(access: Access, trust: Mapping[str, str] | None = None) -> str:
    """Shell lines that set what OpenAI clients read; every value is quoted."""
    values = {
        "OPENAI_BASE_URL": access.base_url,
        "OPENAI_API_KEY": access.api_key,
        "OPENAI_MODEL": access.model,
        **(trust or {}),
    }
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in values.items())
