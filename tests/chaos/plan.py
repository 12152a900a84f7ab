"""Which request has which number: a pure function of (seed, number), so that a run, or one request, can be repeated."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.chaos.ask import Ask, Leave, Shape, authorized, encode
from tests.chaos.bad import BAD
from tests.chaos.setting import CONTEXT, MODEL, SECRETS

WORDS = (
    *(
        "the quick brown fox jumps over the lazy dog",
        "naïve café",
        "雪と月",
        "🙂🙃",
        "Ω≈ç√",
        "ñandú",
        "e\u0301",
        "2 + 2 =",
    ),
    *("\u0000\u0007", "a\r\n\tb", "\u202egnirts", "<|im_end|>", '{}[]"\\', "data: [DONE]"),
)
PREFIXES = ("", "", "The story so far is long. ", "You are a fox and answer in few words. ")
TEMPLATE_TOKENS = 40  # what the chat template adds to a message, at most
FLOOD = 20  # requests of 64 choices each: more than the queue holds


def ask_of(seed: int, number: int) -> Ask:
    """Request `number` of the run with `seed`."""
    rng = random.Random(f"{seed}/{number}")
    (make,) = rng.choices([make for make, _ in _KINDS], [weight for _, weight in _KINDS])
    return replace(make(rng), number=number)


def generation(rng: random.Random) -> Ask:
    """A request that must be answered in full."""
    is_chat = rng.random() < 0.4
    body, choices, longest = (_chat if is_chat else _text)(rng)
    body |= _sampling(rng)
    stops: tuple[str, ...] = ()
    if rng.random() < 0.25:
        stops = tuple(rng.choice(("e", "th", " ", "xq", "\ufffd", "zzz", "ab")) for _ in range(rng.randint(1, 4)))
        body["stop"] = list(stops)
    if rng.random() < 0.1:
        body["stop_token_ids"] = [rng.randrange(250) for _ in range(3)]
    if rng.random() < 0.1:
        body["logprobs"] = True if is_chat else 3
        if is_chat:
            body["top_logprobs"] = 2
    if not is_chat and "logprobs" not in body and rng.random() < 0.1:
        body["echo"] = True
        stops = ()  # the prompt may hold them
    ask = Ask(
        number=0,
        kind="chat" if is_chat else "completion",
        method="POST",
        path="/v1/chat/completions" if is_chat else "/v1/completions",
        headers=authorized(SECRETS[rng.choice(("main", "main", "other"))]),
        form="chat" if is_chat else "text",
        choices=choices,
        max_tokens=longest,
        stops=stops,
        repeatable=True,
    )
    return _delivered(rng, ask, body)


def structured(rng: random.Random) -> Ask:
    """Output that a grammar leads, sometimes with thoughts of many choices at once."""
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 999}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    named = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    expression = r"[ab]{2,9}-[0-9]{3}"
    options = ("certainly", "never", "雪")
    forms: list[tuple[dict[str, Any], Shape]] = [
        ({"response_format": named}, Shape(is_json=True)),
        ({"response_format": {"type": "json_object"}}, Shape(is_json=True)),
        ({"guided_regex": expression}, Shape(regex=expression)),
        ({"guided_choice": list(options)}, Shape(choices=options)),
    ]
    fields, shape = rng.choice(forms)
    is_chat = rng.random() < 0.5
    choices = rng.choice((1, 1, 3))
    limit = rng.choice((4, 30, 90))
    body: dict[str, Any] = {"model": MODEL, "max_tokens": limit, "seed": rng.randrange(2**40), "n": choices}
    body |= {"messages": [{"role": "user", "content": "who?"}]} if is_chat else {"prompt": "who? "}
    ask = Ask(
        number=0,
        kind="structured",
        method="POST",
        path="/v1/chat/completions" if is_chat else "/v1/completions",
        headers=authorized(),
        form="chat" if is_chat else "text",
        choices=choices,
        max_tokens=limit,
        shape=shape,
        repeatable=True,
    )
    return _delivered(rng, ask, body | fields)


def leaver(rng: random.Random) -> Ask:
    """A client that goes away: in its own body, before the answer, or inside it."""
    ask = generation(rng)
    place = rng.choice(("body", "before", "inside", "inside"))
    if place == "body":
        leave = Leave(of_body=rng.random())
    elif place == "before":
        leave = Leave(seconds=rng.uniform(0, 0.3))
    else:
        leave = Leave(events=rng.randint(1, 8)) if ask.stream else Leave(seconds=rng.uniform(0, 0.1))
    return replace(ask, kind=f"leaves {place}", leave=leave, repeatable=False)


def bad(rng: random.Random) -> Ask:
    return rng.choice(BAD)(rng)


def side(rng: random.Random) -> Ask:
    """The other routes."""
    routes: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "/health", {}),
        ("GET", "/metrics", {}),
        ("GET", "/v1/models", {}),
        ("GET", f"/v1/models/{MODEL}", {}),
        ("GET", "/version", {}),
        ("POST", "/tokenize", {"model": MODEL, "prompt": _prompt(rng, 200)}),
        ("POST", "/tokenize", {"messages": [{"role": "user", "content": _prompt(rng, 50)}]}),
        ("POST", "/detokenize", {"tokens": [rng.randrange(290) for _ in range(rng.randint(0, 60))]}),
    ]
    method, path, body = rng.choice(routes)
    return Ask(0, "side", method, path, authorized(), encode(body) if body else b"")


def limited(rng: random.Random) -> Ask:
    """With the key that may ask 60 times a minute."""
    ask = generation(rng)
    headers = authorized(SECRETS["limited"])
    return replace(ask, kind="limited key", headers=headers, statuses=frozenset({200, 429}), repeatable=False)


def flood(rng: random.Random) -> Ask:
    """Many requests of many choices at once: some find the queue full."""
    body = {"model": MODEL, "prompt": [[rng.randrange(250)] for _ in range(4)], "n": 16, "max_tokens": 1, "seed": 1}
    return Ask(
        0,
        "flood",
        "POST",
        "/v1/completions",
        authorized(),
        encode(body),
        statuses=frozenset({200, 429}),
        form="text",
        choices=64,
        max_tokens=1,
        together=FLOOD,
    )


def _delivered(rng: random.Random, ask: Ask, body: dict[str, Any]) -> Ask:
    """Streamed or not."""
    if rng.random() < 0.55:
        body["stream"] = True
        usage = rng.random() < 0.5
        if usage:
            body["stream_options"] = {"include_usage": True}
        return replace(ask, body=encode(body), stream=True, usage=usage)
    return replace(ask, body=encode(body))


def _text(rng: random.Random) -> tuple[dict[str, Any], int, int]:
    """(body, choices, most tokens of one)."""
    count = rng.choice((1, 1, 1, 1, 2, 4))
    n = rng.choice((1, 1, 1, 1, 2, 5))
    longest = rng.choice((8, 40, 120))
    limit = _length(rng, CONTEXT - longest)
    prompts: list[Any]
    if rng.random() < 0.4:
        prompts = [[rng.randrange(250) for _ in range(rng.randint(1, longest))] for _ in range(count)]
    else:
        prompts = [_prompt(rng, longest) for _ in range(count)]
    prompt = prompts[0] if count == 1 else prompts
    return {"model": MODEL, "prompt": prompt, "max_tokens": limit, "n": n}, count * n, limit


def _chat(rng: random.Random) -> tuple[dict[str, Any], int, int]:
    n = rng.choice((1, 1, 1, 2, 3))
    longest = rng.choice((8, 40, 80))
    limit = _length(rng, CONTEXT - longest - 2 * TEMPLATE_TOKENS)
    messages = [{"role": "user", "content": _prompt(rng, longest)}]
    if rng.random() < 0.3:
        messages.insert(0, {"role": "system", "content": "be brief"})
    return {"model": MODEL, "messages": messages, "max_tokens": limit, "n": n}, n, limit


def _length(rng: random.Random, most: int) -> int:
    """Mostly short, some as long as there is room."""
    return max(1, min(most, int(rng.paretovariate(0.9) * 4)))


def _prompt(rng: random.Random, most: int) -> str:
    """Text of at most `most` bytes of UTF-8, which are at most so many tokens; at least one."""
    text = rng.choice(PREFIXES)
    while len(text.encode()) < most:
        text += rng.choice(WORDS) + " "
    cut = text.encode()[: rng.randint(1, most)].decode(errors="ignore")
    return cut or "a"


def _sampling(rng: random.Random) -> dict[str, Any]:
    fields: dict[str, Any] = {"seed": rng.randrange(-(2**40), 2**40)}
    extras: list[tuple[str, Callable[[], object]]] = [
        ("temperature", lambda: rng.choice((0, 0.3, 1.0, 2.0))),
        ("top_p", lambda: rng.uniform(0.05, 1.0)),
        ("top_k", lambda: rng.choice((-1, 0, 1, 5, 1000))),
        ("min_p", lambda: rng.uniform(0, 0.5)),
        ("presence_penalty", lambda: rng.uniform(-2, 2)),
        ("frequency_penalty", lambda: rng.uniform(-2, 2)),
        ("repetition_penalty", lambda: rng.uniform(0.5, 2)),
        ("logit_bias", lambda: {str(rng.randrange(250)): rng.uniform(-100, 100) for _ in range(rng.randint(1, 5))}),
        ("ignore_eos", lambda: rng.random() < 0.5),
        ("user", lambda: "somebody"),
    ]
    for name, value in extras:
        if rng.random() < 0.3:
            fields[name] = value()
    return fields


_KINDS: tuple[tuple[Callable[[random.Random], Ask], float], ...] = (
    (generation, 50),
    (structured, 6),
    (leaver, 16),
    (bad, 20),
    (side, 5),
    (limited, 2.8),
    (flood, 0.2),
)
