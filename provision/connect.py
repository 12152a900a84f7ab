"""How a client is told of an endpoint: exact settings, or a program that asks and prints the answer. Pure.

The key stands in a text only where that was asked for; else programs read OPENAI_API_KEY, which
`eval "$(deployctl endpoint NAME --env)"` sets. A certificate of the deployment's own is trusted by its file.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

QUESTION = "What is the capital of France?"
MESSAGES = [{"role": "user", "content": QUESTION}]
OPENWEBUI_IMAGE = "ghcr.io/open-webui/open-webui:main"
MOUNTED = "/etc/ssl/deployctl.pem"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a client must know. `base_url` ends in /v1; `key` None = it is not to be shown.

    `pem`: the certificate alone; `bundle`: the usual authorities and it. Both None where authorities that everybody
    knows vouch for the endpoint, or without TLS.
    """

    name: str
    base_url: str
    model: str
    key: str | None = None
    pem: Path | None = None
    bundle: Path | None = None

    @property
    def root(self) -> str:
        return self.base_url.removesuffix("/v1")

    @property
    def is_of_this_machine(self) -> bool:
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


@dataclass(frozen=True, slots=True)
class Guide:
    """What to type or paste. `text` is the whole of it; `language` "python" or "sh", None for settings of a window.

    `notes` are lines for the reader.
    """

    client: str
    language: str | None
    text: str
    settings: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def guide_openai(endpoint: Endpoint) -> Guide:
    text = _program(
        *_python_imports(endpoint),
        f"from openai import {'DefaultHttpxClient, OpenAI' if endpoint.pem else 'OpenAI'}",
        "",
        _python_trust(endpoint),
        "client = OpenAI(",
        f"    base_url={json.dumps(endpoint.base_url)},",
        f"    api_key={_python_key(endpoint)},",
        "    http_client=DefaultHttpxClient(verify=trusted)," if endpoint.pem else None,
        ")",
        "answer = client.chat.completions.create(",
        f"    model={json.dumps(endpoint.model)},",
        f"    messages={json.dumps(MESSAGES)},",
        ")",
        "print(answer.choices[0].message.content)",
    )
    return Guide("openai", "python", text, _settings(endpoint), _notes(endpoint, "pip install openai"))


def guide_langchain(endpoint: Endpoint) -> Guide:
    text = _program(
        *_python_imports(endpoint),
        "import httpx" if endpoint.pem else None,
        "from langchain_openai import ChatOpenAI",
        "",
        _python_trust(endpoint),
        "model = ChatOpenAI(",
        f"    base_url={json.dumps(endpoint.base_url)},",
        f"    api_key={_python_key(endpoint)},",
        f"    model={json.dumps(endpoint.model)},",
        "    http_client=httpx.Client(verify=trusted)," if endpoint.pem else None,
        "    http_async_client=httpx.AsyncClient(verify=trusted)," if endpoint.pem else None,
        ")",
        f"print(model.invoke({json.dumps(QUESTION)}).content)",
    )
    return Guide("langchain", "python", text, _settings(endpoint), _notes(endpoint, "pip install langchain-openai"))


def guide_litellm(endpoint: Endpoint) -> Guide:
    """LiteLLM has one file of authorities for all that it asks: the bundle, so that other providers stay known."""
    text = _program(
        *(["import os", ""] if endpoint.key is None else []),
        "import litellm",
        "",
        f"litellm.ssl_verify = {json.dumps(str(endpoint.bundle))}" if endpoint.bundle else None,
        "answer = litellm.completion(",
        f"    model={json.dumps('openai/' + endpoint.model)},",
        f"    api_base={json.dumps(endpoint.base_url)},",
        f"    api_key={_python_key(endpoint)},",
        f"    messages={json.dumps(MESSAGES)},",
        ")",
        "print(answer.choices[0].message.content)",
    )
    return Guide("litellm", "python", text, _settings(endpoint), _notes(endpoint, "pip install litellm"))


def guide_curl(endpoint: Endpoint) -> Guide:
    """The key reaches curl on its standard input: arguments are seen by every user of a machine."""
    body = json.dumps({"model": endpoint.model, "messages": MESSAGES})
    key = '"$OPENAI_API_KEY"' if endpoint.key is None else shlex.quote(endpoint.key)
    text = _program(
        f"printf 'header = \"Authorization: Bearer %s\"\\n' {key} |",
        "curl --config - --silent --show-error --fail-with-body \\",
        f"  --cacert {shlex.quote(str(endpoint.pem))} \\" if endpoint.pem else None,
        f"  --header 'Content-Type: application/json' --data {shlex.quote(body)} \\",
        f"  {endpoint.base_url}/chat/completions",
    )
    return Guide("curl", "sh", text, _settings(endpoint), _notes(endpoint, None))


def guide_chatbox(endpoint: Endpoint) -> Guide:
    """Settings → Model Provider of the desktop app. Its switch for the network sends key and prompts to a server of
    Chatbox's makers (github.com/chatboxai/chatbox/issues/3798), which the endpoint's firewall does not let in."""
    rows = (
        ("Model provider", "Add a custom provider"),
        ("Name", f"deployctl {endpoint.name}"),
        ("API mode", "OpenAI API compatible"),
        ("API host", endpoint.root),
        ("API path", "/v1/chat/completions"),
        ("Improve network compatibility", "off: on, key and prompts go through a server of Chatbox's makers"),
        ("API key", _shown_key(endpoint)),
        ("Model", endpoint.model),
    )
    return Guide("chatbox", None, _table(rows), rows, _window_notes(endpoint))


def guide_openwebui(endpoint: Endpoint) -> Guide:
    """One container. A certificate replaces the container's whole list, so it is the bundle that is mounted."""
    words = ["docker run --detach --name open-webui"]
    words.append("--network host" if endpoint.is_of_this_machine else "--publish 3000:8080")
    words.append(f"--env OPENAI_API_BASE_URL={shlex.quote(endpoint.base_url)}")
    words.append(
        "--env OPENAI_API_KEY" if endpoint.key is None else f"--env OPENAI_API_KEY={shlex.quote(endpoint.key)}"
    )
    if endpoint.bundle is not None:
        words.append(f"--volume {shlex.quote(f'{endpoint.bundle}:{MOUNTED}:ro')}")
        words.append(f"--env SSL_CERT_FILE={MOUNTED} --env REQUESTS_CA_BUNDLE={MOUNTED}")
    words += ["--volume open-webui:/app/backend/data", OPENWEBUI_IMAGE]
    page = "http://localhost:8080" if endpoint.is_of_this_machine else "http://localhost:3000"
    rows = (("API base URL", endpoint.base_url), ("API key", _shown_key(endpoint)), ("Model", endpoint.model))
    notes = (
        *_notes(endpoint, None),
        f"then open {page}; in a running one: Admin Panel, Settings, Connections, OpenAI API, with the rows of --json",
    )
    return Guide("openwebui", "sh", " \\\n  ".join(words) + "\n", rows, notes)


GUIDES: dict[str, Callable[[Endpoint], Guide]] = {
    "openai": guide_openai,
    "curl": guide_curl,
    "langchain": guide_langchain,
    "litellm": guide_litellm,
    "chatbox": guide_chatbox,
    "openwebui": guide_openwebui,
}


def _program(*lines: str | None) -> str:
    """Without the lines that are None."""
    return "".join(f"{line}\n" for line in lines if line is not None)


def _python_imports(endpoint: Endpoint) -> list[str]:
    names = [*(["os"] if endpoint.key is None else []), *(["ssl"] if endpoint.pem else [])]
    return [*(f"import {name}" for name in names), *([""] if names else [])]


def _python_key(endpoint: Endpoint) -> str:
    return 'os.environ["OPENAI_API_KEY"]' if endpoint.key is None else json.dumps(endpoint.key)


def _python_trust(endpoint: Endpoint) -> str | None:
    """The one certificate and no other."""
    return f"trusted = ssl.create_default_context(cafile={json.dumps(str(endpoint.pem))})" if endpoint.pem else None


def _settings(endpoint: Endpoint) -> tuple[tuple[str, str], ...]:
    rows = [("base URL", endpoint.base_url), ("API key", _shown_key(endpoint)), ("model", endpoint.model)]
    return (*rows, *([("certificate", str(endpoint.pem))] if endpoint.pem else []))


def _shown_key(endpoint: Endpoint) -> str:
    return (
        endpoint.key
        or f"`deployctl endpoint {endpoint.name}` prints it; `deployctl keys add` makes one for this client"
    )


def _notes(endpoint: Endpoint, install: str | None) -> tuple[str, ...]:
    first = f'first: eval "$(deployctl endpoint {endpoint.name} --env)"'
    return (*([install] if install else []), *([first] if endpoint.key is None else []))


def _window_notes(endpoint: Endpoint) -> tuple[str, ...]:
    """A program that trusts the system's authorities only cannot be told of one certificate."""
    if endpoint.pem is None:
        return ()
    return (
        f"Chatbox trusts what the system trusts: `deployctl tunnel {endpoint.name}`, with the API host that it prints,"
        " needs no certificate",
        f"or add {endpoint.pem} to the system's trusted certificates",
    )


def _table(rows: tuple[tuple[str, str], ...]) -> str:
    width = max(len(label) for label, _ in rows)
    return "".join(f"{label:<{width}}  {value}\n" for label, value in rows)
