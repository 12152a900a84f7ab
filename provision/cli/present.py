"""What `up` and `redeploy` print when a deployment serves: pure text."""

from __future__ import annotations

import json
import shlex

from provision.target import Access

PROOF_PROMPT = "What is the capital of France?"


def snippet_curl(access: Access) -> str:
    """A request for the shell, with this endpoint and key filled in."""
    body = json.dumps({"model": access.model, "messages": [{"role": "user", "content": "Hello!"}]})
    return (
        f"curl {access.base_url}/chat/completions \\\n"
        f"  -H {shlex.quote('Authorization: Bearer ' + access.api_key)} \\\n"
        f"  -H 'Content-Type: application/json' \\\n"
        f"  -d {shlex.quote(body)}"
    )


def snippet_python(access: Access) -> str:
    """The same with the `openai` package."""
    return (
        "from openai import OpenAI\n"
        f"client = OpenAI(base_url={access.base_url!r}, api_key={access.api_key!r})\n"
        f"answer = client.chat.completions.create(model={access.model!r},\n"
        '    messages=[{"role": "user", "content": "Hello!"}])\n'
        "print(answer.choices[0].message.content)"
    )


def ready_text(name: str, access: Access, *, model: str) -> str:
    """Endpoint, key, snippets, what to type next, and what the same command does on a cloud."""
    return "\n".join(
        [
            *access_lines(name, access),
            "",
            "From the shell:",
            _indent(snippet_curl(access)),
            "",
            "From Python (pip install openai):",
            _indent(snippet_python(access)),
            "",
            f"  talk to it  deployctl chat --name {name}",
            f'  for tools   eval "$(deployctl endpoint {name} --env)"',
            f"  its logs    deployctl logs {name} -f",
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


def cloud_text(model: str) -> list[str]:
    """What the same command will do on a cloud; `deployctl plan` shows it with numbers today."""
    example = model if model != "demo" else "Qwen/Qwen2.5-7B-Instruct"
    return [
        "On a cloud the same command rents one GPU machine and brings this endpoint up on it, through the same",
        "phases: `--cloud aws --instance-type g6.xlarge` or `--cloud alicloud --instance-type ecs.gn7i-c8g1.2xlarge`.",
        "It then costs money per hour until `deployctl down`, which proves that nothing billable is left. This",
        "version plans and prices it but does not start it yet:",
        f"  deployctl plan --cloud aws --instance-type g6.xlarge --model {example}",
    ]


def _indent(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())
