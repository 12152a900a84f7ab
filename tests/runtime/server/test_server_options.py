"""Options of generation: choices, penalties, biases, log-probabilities, echo, ids, and the tokenizer's routes."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletionMessageParam
from server_process import MODEL, Server
from tokenizers import Tokenizer

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
TEXT = "café 🎉 the quick"
Reply = Callable[[str], list[int]]


def test_n_choices_come_from_one_prompt_with_seeds_of_their_own(server: Server, reply: Reply) -> None:
    tokens = reply(TEXT)
    answer = server.openai().chat.completions.create(model=MODEL, messages=MESSAGES, n=3, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == [TEXT] * 3
    seeds = [submit.sampling.seed for submit in server.engine.submits]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(server.engine.submits[0].prompt)
    assert answer.usage.completion_tokens == 3 * (len(tokens) + 1)


def test_the_same_seed_asks_the_engine_for_the_same_choices(server: Server, reply: Reply) -> None:
    reply("a")
    for _ in range(2):
        server.openai().chat.completions.create(model=MODEL, messages=MESSAGES, n=2, seed=-5)
    seeds = [submit.sampling.seed for submit in server.engine.submits]
    assert seeds[:2] == seeds[2:]


def test_choices_of_several_prompts_are_numbered_prompt_by_prompt(server: Server, reply: Reply) -> None:
    reply("x")
    answer = server.openai().completions.create(model=MODEL, prompt=["the", "quick"], n=2, echo=True)
    assert [choice.text for choice in answer.choices] == ["thex", "thex", "quickx", "quickx"]


def test_streamed_choices_carry_their_index(server: Server, reply: Reply) -> None:
    reply(TEXT)
    texts = ["", ""]
    for chunk in server.openai().chat.completions.create(model=MODEL, messages=MESSAGES, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [TEXT, TEXT]


def test_penalties_and_biases_reach_the_engine_as_sent(server: Server, reply: Reply) -> None:
    reply("a")
    server.openai().chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        presence_penalty=0.5,
        frequency_penalty=-1,
        logit_bias={"5": 2, "7": -100},
        extra_body={"repetition_penalty": 1.2},
    )
    sampling = server.engine.submits[0].sampling
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.5, -1.0, 1.2)
    assert sampling.logit_bias == ((5, 2.0), (7, -100.0))


def test_chat_log_probabilities_name_each_shown_token_with_its_bytes(
    server: Server, reply: Reply, tokenizer: Tokenizer
) -> None:
    tokens = reply(TEXT)
    answer = server.openai().chat.completions.create(model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=2)
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    assert len(content) == len(tokens)  # the token that ends the answer is not shown
    assert b"".join(bytes(entry.bytes or []) for entry in content).decode() == TEXT
    assert [len(entry.top_logprobs) for entry in content] == [2] * len(tokens)
    assert (content[0].logprob, content[0].top_logprobs[1].logprob) == (-0.5, -1.5)
    assert content[0].token == tokenizer.decode([tokens[0]])


def test_streamed_log_probabilities_are_those_of_the_whole_answer(server: Server, reply: Reply) -> None:
    reply(TEXT)
    chat = server.openai().chat.completions
    whole = chat.create(model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=1).choices[0].logprobs
    pieces = []
    for chunk in chat.create(model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=1, stream=True):
        for choice in chunk.choices:
            pieces += (choice.logprobs.content or []) if choice.logprobs else []
    assert whole is not None
    assert pieces == whole.content


def test_no_log_probabilities_without_being_asked(server: Server, reply: Reply) -> None:
    reply(TEXT)
    answer = server.openai().chat.completions.create(model=MODEL, messages=MESSAGES)
    assert answer.choices[0].logprobs is None
    assert server.engine.submits[0].sampling.logprobs is None


def test_completion_log_probabilities_are_four_lists_of_one_length(server: Server, reply: Reply) -> None:
    tokens = reply("the quick")
    answer = server.openai().completions.create(model=MODEL, prompt="fox ", logprobs=1)
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.text_offset is not None
    assert found.top_logprobs is not None
    assert "".join(found.tokens) == "the quick"
    assert found.token_logprobs == [-0.5] * len(tokens)
    assert all(
        answer.choices[0].text.startswith(token, offset)
        for token, offset in zip(found.tokens, found.text_offset, strict=True)
    )
    assert [top[token] for top, token in zip(found.top_logprobs, found.tokens, strict=True)] == [-0.5] * len(tokens)


def test_echo_repeats_the_prompt_once_before_the_output(server: Server, reply: Reply) -> None:
    reply(" jumps")
    client = server.openai()
    whole = client.completions.create(model=MODEL, prompt="the fox", echo=True).choices[0].text
    chunks = client.completions.create(model=MODEL, prompt="the fox", echo=True, stream=True)
    assert whole == "the fox jumps"
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole


def test_a_clients_request_id_comes_back_in_header_and_answer(client: httpx.Client, reply: Reply) -> None:
    reply("a")
    body = {"model": MODEL, "prompt": "the"}
    answer = client.post("/v1/completions", json=body, headers={"X-Request-Id": "trace-1.2_3"})
    assert answer.headers["x-request-id"] == "trace-1.2_3"
    assert answer.json()["id"] == "cmpl-trace-1.2_3"


@pytest.mark.parametrize("given", ["", "with space", "x" * 65, "line\tbreak"])
def test_an_id_that_could_forge_a_log_line_is_replaced(client: httpx.Client, given: str) -> None:
    answer = client.get("/v1/models", headers={"X-Request-Id": given})
    assert answer.status_code == 200
    assert len(answer.headers["x-request-id"]) == 24


def test_refused_requests_have_an_id_too(server: Server) -> None:
    answer = httpx.get(f"{server.url}/v1/models", headers={"X-Request-Id": "abc"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (401, "abc")


def test_tokenize_and_detokenize_are_inverse(client: httpx.Client, tokenizer: Tokenizer) -> None:
    found = client.post("/tokenize", json={"prompt": TEXT}).json()
    assert found["tokens"] == tokenizer.encode(TEXT).ids
    assert found["count"] == len(found["tokens"])
    assert client.post("/detokenize", json={"tokens": found["tokens"]}).json() == {"prompt": TEXT}


def test_tokenize_of_messages_is_the_prompt_of_a_chat(server: Server, client: httpx.Client, reply: Reply) -> None:
    reply("a")
    server.openai().chat.completions.create(model=MODEL, messages=MESSAGES)
    found = client.post("/tokenize", json={"model": MODEL, "messages": MESSAGES}).json()
    assert found["tokens"] == server.engine.submits[0].prompt


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, None),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, None),
        ("/tokenize", {"prompt": "a", "model": "other"}, "model"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
    ],
)
def test_wrong_bodies_of_the_tokenizers_routes_are_refused(
    client: httpx.Client, path: str, body: dict[str, Any], param: str | None
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param


def test_the_version_is_the_distributions(client: httpx.Client) -> None:
    installed = [found.version for found in metadata.distributions(name="deployctl")]
    assert client.get("/version").json() == {"version": installed[0] if installed else "unknown"}
