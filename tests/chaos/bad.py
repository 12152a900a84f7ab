"""Requests that are wrong, each in one way, and the status that says so."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from tests.chaos.ask import Ask, authorized, encode
from tests.chaos.setting import CONTEXT, MODEL

HUGE = 2 * 2**20  # bytes of a body; the limit for a context of CONTEXT tokens is half of it
MANY = 10_000


def _post(kind: str, body: bytes, *statuses: int, path: str = "/v1/completions", **changes: Any) -> Ask:
    return Ask(
        number=0,
        kind=f"bad: {kind}",
        method=changes.pop("method", "POST"),
        path=path,
        headers=changes.pop("headers", authorized()),
        body=body,
        statuses=frozenset(statuses or (400,)),
        **changes,
    )


def broken_json(rng: random.Random) -> Ask:
    body = encode({"model": MODEL, "prompt": "the quick brown fox"})
    return _post("cut JSON", body[: rng.randrange(1, len(body))])


def bytes_of_noise(rng: random.Random) -> Ask:
    return _post("noise", b"\xff" + rng.randbytes(rng.randint(1, 400)))


def nothing(_: random.Random) -> Ask:
    return _post("empty body", b"")


def not_an_object(rng: random.Random) -> Ask:
    return _post("no object", rng.choice((b"[]", b"7", b'"text"', b"null", b"true")))


def deep(_: random.Random) -> Ask:
    return _post("deep nesting", b'{"model":' + b"[" * MANY + b"]" * MANY + b"}")


def wrong_field(rng: random.Random) -> Ask:
    """One field of a good request replaced by what it cannot be."""
    name, value = rng.choice(
        [
            ("temperature", "hot"), ("temperature", -1), ("temperature", 2.5), ("temperature", True),
            ("max_tokens", 0), ("max_tokens", -5), ("max_tokens", 10**30), ("max_tokens", CONTEXT + 1),
            ("max_tokens", "5"), ("max_tokens", 1.5),
            ("n", 0), ("n", 17), ("n", 10**6), ("top_p", 0), ("top_p", 2), ("top_k", -2), ("min_p", 1.1),
            ("seed", 2**70), ("seed", "x"), ("stop", ["a"] * 17), ("stop", "s" * 300), ("stop", [""]), ("stop", 7),
            ("stop_token_ids", [-1]), ("stop_token_ids", [10**9]), ("stop_token_ids", [1] * 65),
            ("logit_bias", {"a": 1}), ("logit_bias", {"1": 101}), ("logit_bias", {"999999": 1}), ("logit_bias", [1]),
            ("logprobs", 21), ("logprobs", -1), ("presence_penalty", 3), ("repetition_penalty", 0),
            ("min_tokens", 100), ("min_tokens", -1), ("stream", "yes"), ("stream_options", {"include_usage": True}),
            ("best_of", 3), ("suffix", "end"), ("prompt_logprobs", 1), ("priority", 5), ("use_beam_search", True),
            ("prompt", ""), ("prompt", []), ("prompt", [[]]), ("prompt", [1, "a"]), ("prompt", {"a": 1}),
            ("prompt", None),
            ("prompt", [10**9]), ("prompt", [-1]), ("prompt", ["a"] * 65), ("prompt", "word " * 600),
            ("prompt", [5] * (CONTEXT + 1)), ("prompt", "a\ud800b"), ("guided_regex", "("), ("guided_regex", "(?=a)b"),
            ("guided_regex", "(a{1000}){1000}"), ("guided_choice", []), ("guided_json", {"type": "nothing"}),
            ("guided_json", {"$ref": "#/nowhere"}), ("response_format", {"type": "json_schema"}),
            ("response_format", {"type": "poem"}), ("surprise", 1), ("prompt_", "a"), ("trust_remote_code", True),
        ]
    )  # fmt: skip
    body: dict[str, Any] = {"model": MODEL, "prompt": "the", "max_tokens": 3} | {name: value}
    return _post(f"field {name}", encode(body))


def wrong_message(rng: random.Random) -> Ask:
    messages: Any = rng.choice(
        [
            [], "hello", [{"role": "wizard", "content": "hi"}], [{"content": "hi"}], [{"role": "user", "content": 7}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/"}}]}],
            [{"role": "user", "content": "x" * 20_000}], [{"role": "user", "content": "\udcff"}],
            [{"role": "tool", "content": "result"}], [{"role": "user", "content": "hi"}] * 5000,
        ]
    )  # fmt: skip
    body = {"model": MODEL, "messages": messages}
    return _post("messages", encode(body), path="/v1/chat/completions")


def wrong_tools(rng: random.Random) -> Ask:
    tools: Any = rng.choice(
        [
            [{"type": "function", "function": {"name": "a b"}}],
            [{"type": "shell"}],
            [{"type": "function", "function": {"name": "f"}}] * 129,
            "all",
        ]
    )
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "tools": tools}
    return _post("tools", encode(body), path="/v1/chat/completions")


def numbers(rng: random.Random) -> Ask:
    text = rng.choice(("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "01", "0x10", "1_000"))
    body = f'{{"model": "{MODEL}", "prompt": "a", "temperature": {text}}}'
    return _post("number", body.encode())


def huge_schema(_: random.Random) -> Ask:
    schema: dict[str, Any] = {"type": "string"}
    for _level in range(100):
        schema = {"type": "array", "items": schema}
    return _post("deep schema", encode({"model": MODEL, "prompt": "a", "guided_json": schema}))


def wrong_model(rng: random.Random) -> Ask:
    name = rng.choice(("gpt-4", "", "../../etc/passwd", "m" * MANY, "\u0000"))
    return _post("model", encode({"model": name, "prompt": "a"}), 404)


def wrong_key(rng: random.Random) -> Ask:
    value = rng.choice(
        ("Bearer sk-wrong", "Bearer", "Basic abc", "", "Bearer " + "k" * 5000, "sk-chaos-main", "Bearer \xe9")
    )
    headers = (("authorization", value), ("content-type", "application/json"))
    return _post("key", encode({"model": MODEL, "prompt": "a"}), 401, headers=headers)


def wrong_path(rng: random.Random) -> Ask:
    path = rng.choice(
        ("/v1", "/v1/embeddings", "/v1//completions", "/admin", "/v1/models/none", "/%00", "/" + "p" * 2000)
    )
    return _post("path", b"", 404, 405, path=path, method="GET")


def wrong_method(rng: random.Random) -> Ask:
    method = rng.choice(("PUT", "DELETE", "PATCH", "GET"))
    return _post("method", b"", 405, method=method)


def large_body(rng: random.Random) -> Ask:
    body = b'{"model": "%b", "prompt": "%b"}' % (MODEL.encode(), b"x" * HUGE)
    return _post("huge body", body, 413, chunked=rng.random() < 0.5)


def long_list(rng: random.Random) -> Ask:
    """Many errors at once: the answer stays small."""
    body = {f"field_{number}": "x" * 50 for number in range(rng.randint(100, 2000))}
    return _post("many errors", encode(body))


def not_http(rng: random.Random) -> Ask:
    raw = rng.choice(
        (
            b"GARBAGE\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(64),
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
        )
    )
    return Ask(0, "bad: no HTTP", raw=raw, statuses=frozenset({400, 401}))


def endless_head(_: random.Random) -> Ask:
    raw = b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"X-More: " + b"y" * 200_000
    return Ask(0, "bad: endless head", raw=raw, statuses=frozenset({431}))


def unusable_token(rng: random.Random) -> Ask:
    body = {"tokens": rng.choice(([10**9], [-1], "abc", [1.5], None))}
    return _post("detokenize", json.dumps(body).encode(), path="/detokenize")


BAD: tuple[Callable[[random.Random], Ask], ...] = (
    broken_json, bytes_of_noise, nothing, not_an_object, deep, wrong_field, wrong_field, wrong_field, wrong_field,
    wrong_message, wrong_message, wrong_tools, numbers, huge_schema, wrong_model, wrong_key, wrong_path, wrong_method,
    large_body, long_list, not_http, endless_head, unusable_token,
)  # fmt: skip
