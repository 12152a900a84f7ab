"""What `up` and `redeploy` print when a deployment serves: pure text."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

from provision.progress import format_seconds
from provision.target import Access, Observation

PROOF_PROMPT = "What is the capital of France?"


def snippet_curl(access: Access, pem: Path | None = None) -> str:
    """A request for the shell, with this endpoint and key filled in. `pem`: file of the certificate to pin."""
    body = json.dumps({"model": access.model, "messages": [{"role": "user", "content": "Hello!"}]})
    pinned = f"--cacert {shlex.quote(str(pem))} " if pem else ""
    return (
        f"curl {pinned}{access.base_url}/chat/completions \\\n"
        f"  -H {shlex.quote('Authorization: Bearer ' + access.api_key)} \\\n"
        f"  -H 'Content-Type: application/json' \\\n"
        f"  -d {shlex.quote(body)}"
    )


def snippet_python(access: Access, pem: Path | None = None) -> str:
    """The same with the `openai` package."""
    imports, pinned = "from openai import OpenAI\n", ""
    if pem is not None:
        imports = "import ssl\nfrom openai import DefaultHttpxClient, OpenAI\n"
        pinned = f",\n    http_client=DefaultHttpxClient(verify=ssl.create_default_context(cafile={str(pem)!r}))"
    return (
        f"{imports}"
        f"client = OpenAI(base_url={access.base_url!r}, api_key={access.api_key!r}{pinned})\n"
        f"answer = client.chat.completions.create(model={access.model!r},\n"
        '    messages=[{"role": "user", "content": "Hello!"}])\n'
        "print(answer.choices[0].message.content)"
    )


def ready_text(name: str, access: Access, *, model: str) -> str:
    """Endpoint, key, snippets, what to type next, and what the same command does on a cloud."""
    return "\n".join(
        [
            *access_lines(name, access),
            *usage_lines(name, access),
            f"  stop it     deployctl down {name}",
            "",
            *cloud_text(model),
        ]
    )


def changed_text(name: str, access: Access, release: str | None) -> str:
    """After a redeploy: what serves now; the endpoint is the one from before."""
    return "\n".join([*access_lines(name, access), f"  release   {release}"])


def access_lines(name: str, access: Access) -> list[str]:
    return [
        f"{name} is up.",
        "",
        f"  endpoint  {access.base_url}",
        f"  API key   {access.api_key}",
        f"  model     {access.model}",
    ]


def trust_lines(pem: Path | None) -> list[str]:
    return [f"  trust     {pem}"] if pem is not None else []


def usage_lines(name: str, access: Access, pem: Path | None = None) -> list[str]:
    """Snippets, and what to type next wherever a deployment lives."""
    return [
        "",
        "From the shell:",
        _indent(snippet_curl(access, pem)),
        "",
        "From Python (pip install openai):",
        _indent(snippet_python(access, pem)),
        "",
        f"  talk to it  deployctl chat --name {name}",
        f'  for tools   eval "$(deployctl endpoint {name} --env)"',
        f"  its logs    deployctl logs {name} -f",
    ]


def cloud_ready_text(name: str, access: Access, pem: Path | None, seen: Observation) -> str:
    """Endpoint, key, machine, price and end; snippets that pin the certificate; what to type next."""
    return "\n".join(
        [
            *access_lines(name, access),
            f"  machine   {machine_text(seen)}",
            f"  price     {money_text(seen)}",
            *trust_lines(pem),
            *usage_lines(name, access, pem),
            f"  end it      deployctl down {name}",
        ]
    )


def host_ready_text(name: str, access: Access, pem: Path | None, machine: str) -> str:
    """Endpoint, key, machine, snippets that pin the certificate; what to type next."""
    return "\n".join(
        [
            *access_lines(name, access),
            f"  machine   {machine}",
            *trust_lines(pem),
            *usage_lines(name, access, pem),
            f"  a shell     deployctl ssh {name}",
            f"  end it      deployctl down {name}",
        ]
    )


def machine_text(seen: Observation) -> str:
    """ "i-0a1b, g6.xlarge in us-east-1a"."""
    return f"{seen.instance_id}, {seen.instance_type} in {seen.zone or seen.region}"


def money_text(seen: Observation, now: float | None = None) -> str:
    """ "$0.81/h (estimate), the cloud ends the machine in 7 h 58 min"."""
    price = f"${seen.price_per_hour:.2f}/h (estimate)" if seen.price_per_hour is not None else "unknown"
    return f"{price}, {end_text(seen, time.time() if now is None else now)}"


def end_text(seen: Observation, now: float) -> str:
    if seen.expires_at is None:
        return "until `deployctl down`: it has no TTL"
    left = seen.expires_at - now
    if left <= 0:
        return "its time has ended"
    return f"the cloud ends the machine in {format_seconds(left)}"


def cloud_text(model: str) -> list[str]:
    """What the same command does on a cloud; `deployctl plan` shows it with numbers and needs no account."""
    example = model if model != "demo" else "Qwen/Qwen2.5-7B-Instruct"
    return [
        "On a cloud the same command rents one GPU machine and brings this endpoint up on it, through the same",
        "phases: `--cloud aws --instance-type g6.xlarge` or `--cloud alicloud --instance-type ecs.gn7i-c8g1.2xlarge`.",
        "It then costs money per hour until `deployctl down`, which proves that nothing billable is left. What it",
        "would be and cost, without an account:",
        f"  deployctl plan --cloud aws --instance-type g6.xlarge --model {example}",
    ]


def _indent(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())
