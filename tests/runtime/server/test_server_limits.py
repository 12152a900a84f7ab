"""The bounds of what a request may be: each is refused with its number, at once, and never reaches the engine."""

from __future__ import annotations

import contextlib
import hmac
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_double import DEADLINE_S
from hypothesis import given
from hypothesis import strategies as st
from server_process import KEY, MAX_NUM_SEQS, MODEL, Server, key_digest

from runtime.deployment import ApiKey, encode
from runtime.server import limits, structured
from runtime.server.auth import KeyRing
from runtime.server.errors import ApiError
from runtime.server.json_text import is_too_deep

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": MODEL, "prompt": "the"}
JSON = {"Content-Type": "application/json"}
MAX_ANSWER = 6000  # bytes of any refusal

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
FAT_TOOL = {"type": "function", "function": {"name": "f", "description": "x" * limits.MAX_TOOL_BYTES}}


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"items": value}
    return value


def call_with(arguments: str) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"messages": [{"role": "assistant", "tool_calls": [call]}]}


BEYOND: list[tuple[str, dict[str, Any], str | None]] = [
    # endpoint, fields, the field that the error names
    ("chat", {"logit_bias": {str(token): 1 for token in range(limits.MAX_BIASES + 1)}}, "logit_bias"),
    ("chat", {"stop_token_ids": [1] * (limits.MAX_STOP_TOKEN_IDS + 1)}, "stop_token_ids"),
    ("chat", {"messages": CHAT["messages"] * (limits.MAX_MESSAGES + 1)}, "messages"),
    ("chat", {"tools": [TOOL] * (limits.MAX_TOOLS + 1)}, "tools"),
    ("chat", {"tools": [FAT_TOOL]}, "tools"),
    ("chat", {"guided_choice": ["a"] * (limits.MAX_GUIDED_CHOICES + 1)}, "guided_choice"),
    ("chat", {"guided_regex": "a" * 70_000}, "guided_regex"),
    ("chat", {"guided_json": nested(40)}, "guided_json"),
    ("chat", {"guided_json": json.dumps(nested(40))}, "guided_json"),
    ("chat", {"guided_json": "[" * 100_000}, "guided_json"),
    ("chat", call_with("[" * 100_000 + "]" * 100_000), "messages[0].tool_calls[0].function.arguments"),
    ("chat", call_with("[" * 100_000), "messages[0].tool_calls[0].function.arguments"),
    ("chat", {"guided_json": nested(100)}, None),
    ("chat", {"metadata": nested(500)}, None),
    ("text", {"prompt": nested(100)}, None),
    ("chat", {"chat_template": "{{ messages }}"}, "chat_template"),
    ("chat", {"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
    ("chat", {"logits_processors": ["os.system"]}, "logits_processors"),
    *[("text", {field: 2**70}, field) for field in ("max_tokens", "min_tokens", "top_k", "seed")],
    ("text", {"max_tokens": 10**4000}, "max_tokens"),
    ("text", {"prompt": [2**70]}, "prompt"),
    ("text", {"stop_token_ids": [2**70]}, "stop_token_ids[0]"),
    ("text", {"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
    ("text", {"temperature": 1e400}, "temperature"),
    ("text", {"user": 5}, "user"),
]


@pytest.mark.parametrize(("endpoint", "fields", "param"), BEYOND)
def test_what_is_beyond_a_bound_is_refused_by_name_and_in_few_words(
    client: httpx.Client, server: Server, endpoint: str, fields: dict[str, Any], param: str | None
) -> None:
    path, base = ("/v1/chat/completions", CHAT) if endpoint == "chat" else ("/v1/completions", TEXT)
    answer = client.post(path, content=json.dumps({**base, **fields}), headers=JSON)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text[:300]
    assert len(answer.content) < MAX_ANSWER
    assert server.engine.submits == []


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        ("chat", {"logit_bias": {str(token): 1 for token in range(200)}}),
        ("chat", {"stop": ["x" * limits.MAX_STOP_CHARS] * limits.MAX_STOPS}),
        ("chat", {"n": limits.MAX_CHOICES}),
        ("chat", {"logprobs": True, "top_logprobs": limits.MAX_LOGPROBS}),
        ("text", {"prompt": ["a"] * limits.MAX_PROMPTS}),
        ("text", {"user": "u" * 10_000}),
    ],
)
def test_what_is_within_the_bounds_is_served(client: httpx.Client, endpoint: str, fields: dict[str, Any]) -> None:
    path, base = ("/v1/chat/completions", CHAT) if endpoint == "chat" else ("/v1/completions", TEXT)
    assert client.post(path, json={**base, **fields}).status_code == 200


def test_a_megabyte_of_wrong_fields_comes_back_as_a_few_lines(client: httpx.Client) -> None:
    body = {**CHAT, "messages": [{"role": "robot", "content": "x" * 200} for _ in range(4000)]}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "and 3990 more" in answer.json()["error"]["message"]
    assert len(answer.content) < MAX_ANSWER


def test_the_body_may_grow_with_the_context_between_two_bounds() -> None:
    sizes = [limits.max_body(context) for context in (16, 2**15, 2**18, 10**7)]
    assert sizes == [2**20, 2**21, 2**24, 2**25]


json_values = st.recursive(
    st.text(alphabet='ab"\\[]{}é') | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='a"\\[{'), inner, max_size=3),
    max_leaves=12,
)


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@given(json_values, st.integers(0, 70), st.booleans())
def test_depth_is_that_of_the_value_whatever_its_strings_hold(value: Any, levels: int, pretty: bool) -> None:
    for _ in range(levels):
        value = [value]
    text = json.dumps(value, indent=1 if pretty else None, ensure_ascii=pretty).encode()
    assert is_too_deep(text) == (depth(value) > limits.MAX_JSON_DEPTH)


@pytest.mark.parametrize(
    "text", [b'"\\' * 2**20, b'["' * 2**20, b"[]" * 2**20, b"[" * 2**21, b'"' * 2**21, b"{]" * 2**20]
)
@pytest.mark.timeout(60)  # quadratic would be hours
def test_depth_takes_time_linear_in_the_text(text: bytes) -> None:
    assert not is_too_deep(text)


def test_more_prompt_tokens_than_the_queue_holds_get_429_with_retry_after(server: Server) -> None:
    engine = server.engine
    engine.pause_at = 0
    prompts = [[10] * 240] * limits.MAX_PROMPTS
    room = limits.max_open_tokens(engine.max_model_len, MAX_NUM_SEQS)
    fitting = room // (240 * limits.MAX_PROMPTS)
    body = {"model": MODEL, "prompt": prompts, "max_tokens": 5}
    refused: list[httpx.Response] = []
    leave = threading.Event()

    def hold() -> None:
        with server.http() as client, client.stream("POST", "/v1/completions", json={**body, "stream": True}):
            leave.wait(DEADLINE_S)

    def ask() -> None:
        with server.http() as client:
            refused.append(client.post("/v1/completions", json=body))

    # A stream's head comes with its first token: these wait for theirs until the engine answers.
    holders = [threading.Thread(target=hold, daemon=True) for _ in range(fitting)]
    for holder in holders:
        holder.start()
    engine.wait_for(lambda: len(engine.submits) == fitting * limits.MAX_PROMPTS, "the queue fills")
    ask()
    leave.set()
    for submit in engine.submits:
        engine.finish(submit.id, [])
    for holder in holders:
        holder.join(DEADLINE_S)
    assert refused[0].status_code == 429
    assert refused[0].headers["retry-after"] == "1"
    assert f"the limit is {room}" in refused[0].json()["error"]["message"]
    assert len(engine.submits) == fitting * limits.MAX_PROMPTS


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "{url}"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "video_url", "video_url": {"url": "{url}"}},
        {"type": "file", "file": {"file_id": "{url}"}},
        {"type": "text", "text": "![picture]({url})"},
    ],
    ids=lambda part: part["type"],
)
def test_nothing_that_a_message_names_is_ever_fetched(client: httpx.Client, part: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.setblocking(False)
        url = f"http://127.0.0.1:{bait.getsockname()[1]}/x.png"
        message = json.loads(json.dumps({"role": "user", "content": [part]}).replace("{url}", url))
        answer = client.post("/v1/chat/completions", json={**CHAT, "messages": [message]})
        assert answer.status_code == (200 if part["type"] == "text" else 400)
        with pytest.raises(BlockingIOError):  # nobody has connected
            bait.accept()


def test_a_schema_that_refers_elsewhere_is_refused_and_nothing_is_fetched(client: httpx.Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.setblocking(False)
        schema = {"$ref": f"http://127.0.0.1:{bait.getsockname()[1]}/schema.json"}
        assert client.post("/v1/chat/completions", json={**CHAT, "guided_json": schema}).status_code == 400
        with pytest.raises(BlockingIOError):
            bait.accept()


def doubling(levels: int) -> dict[str, Any]:
    """A schema of a few hundred bytes that stands for 2^levels alternatives."""
    definitions: dict[str, Any] = {"d0": {"type": "string"}}
    for level in range(1, levels):
        below = {"$ref": f"#/$defs/d{level - 1}"}
        both = {"type": "object", "properties": {"a": below, "b": below}, "additionalProperties": False}
        definitions[f"d{level}"] = {"anyOf": [both, {"allOf": [below, below]}]}
    return {"$defs": definitions, "$ref": f"#/$defs/d{levels - 1}"}


HOSTILE = {
    "squared": lambda: structured.regex("(a{1000}){1000}", "p"),
    "many optional": lambda: structured.regex("(a?){60000}", "p"),
    "backtracking": lambda: structured.regex("(a|aa)*b" * 3000, "p"),
    "long look back": lambda: structured.regex("(.*a.{250}b)", "p"),
    "many choices": lambda: structured.choice(["x" * 60 + str(number) for number in range(1000)], "p"),
    "doubling": lambda: structured.json_schema(doubling(20), "p"),
    "refers to itself": lambda: structured.json_schema({"$ref": "#"}, "p"),
    "many properties": lambda: structured.json_schema(
        {"type": "object", "properties": {f"p{number}": {"type": "integer"} for number in range(1800)}}, "p"
    ),
    "long text": lambda: structured.json_schema({"type": "string", "minLength": 10**6, "maxLength": 10**9}, "p"),
    "a large multiple": lambda: structured.json_schema({"type": "integer", "multipleOf": 999983}, "p"),
    "coprime multiples": lambda: structured.json_schema({"allOf": [{"multipleOf": m} for m in (97, 89, 83)]}, "p"),
    "multiples of an argument": lambda: structured.tool_calls(
        {"f": {"properties": {"a": {"type": "integer", "multipleOf": 999983}}}}, "", "", several=False, param="p"
    ),
}


@pytest.mark.timeout(60)  # a second here, some on a slow and busy machine; else minutes or for ever
@pytest.mark.parametrize("name", HOSTILE)
def test_a_grammar_is_built_or_refused_in_little_time(name: str) -> None:
    with contextlib.suppress(ApiError):
        structured.grammar(HOSTILE[name](), "none", "p")


@pytest.mark.parametrize("multiple", [1, 5, 0.01, 9973, 1e-7])
def test_multiples_that_people_ask_for_can_be_enforced(multiple: float) -> None:
    schema = {
        "properties": {"a": {"type": "number", "multipleOf": multiple}, "b": {"type": "integer", "multipleOf": 1}}
    }
    assert structured.json_schema({"type": "object", **schema}, "p")


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    path = tmp_path / "keys.json"
    path.write_bytes(encode([ApiKey(name=name, sha256=key_digest(name * 20)) for name in "abc"]))
    return KeyRing(path)


@pytest.mark.parametrize("secret", ["a" * 20, "c" * 20, "nobody"])
def test_every_key_is_compared_in_constant_time_whichever_matches(
    ring: KeyRing, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []
    real: Callable[[str, str], bool] = hmac.compare_digest

    def counting(given: str, known: str) -> bool:
        compared.append(known)
        return real(given, known)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    ring.match(f"Bearer {secret}")
    assert compared == [key_digest(name * 20) for name in "abc"]


@pytest.mark.parametrize("secret", [KEY.upper(), KEY[:-1], f"{KEY}{KEY}"])
def test_a_key_counts_letter_by_letter(server: Server, secret: str) -> None:
    with server.http(secret) as client:
        assert client.get("/v1/models").status_code == 401


@pytest.mark.parametrize("content", [b"[]", b"no JSON"], ids=["no key", "broken"])
def test_without_keys_nobody_is_let_in(make_server: Callable[..., Server], content: bytes) -> None:
    server = make_server()
    server.keys.write_bytes(content)
    server.launch()
    for authorization in ({}, {"Authorization": f"Bearer {KEY}"}, {"Authorization": "Bearer x"}):
        assert httpx.get(f"{server.url}/v1/models", headers=authorization).status_code == 401
