"""Answers, streamed and whole, as the openai client and the wire see them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletionMessageParam
from server_process import MODEL, Server
from tokenizers import Tokenizer

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
TEXT = "café 🎉 the quick brown fox"
Reply = Callable[[str], list[int]]


def stream_events(client: httpx.Client, path: str, body: dict[str, Any]) -> list[Any]:
    with client.stream("POST", path, json={**body, "stream": True}) as stream:
        lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_chat_answer_has_text_finish_reason_and_usage(server: Server, reply: Reply) -> None:
    tokens = reply(TEXT)
    server.engine.cached_tokens = 3
    answer = server.openai().chat.completions.create(model=MODEL, messages=MESSAGES)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(server.engine.submits[0].prompt)
    assert answer.usage.completion_tokens == len(tokens) + 1  # with the end token
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


def test_a_streamed_chat_adds_up_to_the_same_text(server: Server, reply: Reply) -> None:
    reply(TEXT)
    chunks = list(server.openai().chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_a_streamed_chat_ends_with_usage_where_it_is_asked_for(server: Server, reply: Reply) -> None:
    tokens = reply(TEXT)
    options: Any = {"include_usage": True}
    chat = server.openai().chat.completions
    chunks = list(chat.create(model=MODEL, messages=MESSAGES, stream=True, stream_options=options))
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(tokens) + 1
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_chat_template_makes_the_prompt(server: Server, tokenizer: Tokenizer, reply: Reply) -> None:
    reply("ok")
    messages: list[ChatCompletionMessageParam] = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
    ]
    server.openai().chat.completions.create(model=MODEL, messages=messages)
    expected = "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\none\ntwo<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(server.engine.submits[0].prompt, skip_special_tokens=False) == expected


def test_messages_that_the_template_refuses_are_a_400_with_its_reason(client: httpx.Client) -> None:
    body = {"model": MODEL, "messages": [{"role": "assistant", "content": "hi"}]}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages"
    assert "must be a user turn" in answer.json()["error"]["message"]


def test_a_completion_answer_has_text_and_usage(server: Server, reply: Reply) -> None:
    reply(TEXT)
    answer = server.openai().completions.create(model=MODEL, prompt="the", max_tokens=100)
    assert answer.choices[0].text == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(server.engine.submits[0].prompt)


def test_a_streamed_completion_adds_up_and_carries_its_finish_reason_last(server: Server, reply: Reply) -> None:
    reply(TEXT)
    stream = server.openai().completions.create(model=MODEL, prompt="the", max_tokens=100, stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_completion_has_16_tokens_by_default(server: Server, reply: Reply) -> None:
    tokens = reply("a" * 40)
    answer = server.openai().completions.create(model=MODEL, prompt="the")
    assert len(tokens) == 40
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("a" * 16, "length")


def test_a_chat_may_use_the_rest_of_the_context_by_default(server: Server, reply: Reply) -> None:
    reply("ok")
    server.openai().chat.completions.create(model=MODEL, messages=MESSAGES)
    submit = server.engine.submits[0]
    assert submit.sampling.max_tokens == server.engine.max_model_len - len(submit.prompt)


@pytest.mark.parametrize(
    ("prompt", "count"),
    [("the", 1), (["the", "fox"], 2), ([10, 11, 12], 1), ([[10, 11], [12], [13, 14]], 3)],
    ids=["text", "texts", "ids", "lists of ids"],
)
@pytest.mark.parametrize("stream", [True, False])
def test_every_form_of_prompt_gets_its_choices(
    client: httpx.Client, server: Server, reply: Reply, prompt: Any, count: int, stream: bool
) -> None:
    reply("fox")
    body = {"model": MODEL, "prompt": prompt}
    texts = [""] * count
    if stream:
        for event in stream_events(client, "/v1/completions", body):
            texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    else:
        for choice in client.post("/v1/completions", json=body).json()["choices"]:
            texts[choice["index"]] = choice["text"]
    assert texts == ["fox"] * count


def test_token_ids_reach_the_engine_as_they_are(client: httpx.Client, server: Server, reply: Reply) -> None:
    reply("ok")
    client.post("/v1/completions", json={"model": MODEL, "prompt": [[10, 11], [12]]})
    assert [submit.prompt for submit in server.engine.submits] == [[10, 11], [12]]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("per_step", [1, 3, 100])
def test_a_stop_string_cuts_the_text_wherever_its_tokens_fall(
    client: httpx.Client, server: Server, reply: Reply, stream: bool, per_step: int
) -> None:
    reply("one two STOP three")
    server.engine.tokens_per_step = per_step
    body = {"model": MODEL, "prompt": "the", "max_tokens": 100, "stop": ["STOP", "never"]}
    if stream:
        events = stream_events(client, "/v1/completions", body)
        text = "".join(event["choices"][0]["text"] for event in events)
        reason = events[-1]["choices"][0]["finish_reason"]
    else:
        choice = client.post("/v1/completions", json=body).json()["choices"][0]
        text, reason = choice["text"], choice["finish_reason"]
    assert (text, reason) == ("one two ", "stop")


def test_a_stop_string_frees_the_request_in_the_engine(client: httpx.Client, server: Server, reply: Reply) -> None:
    reply("one STOP two three four")
    server.engine.pause_at = 10
    body = {"model": MODEL, "prompt": "the", "max_tokens": 100, "stop": "STOP"}
    assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == "one "
    server.engine.wait_for(lambda: len(server.engine.aborted) == 1, "the request is aborted")


def test_a_stop_string_waits_for_min_tokens(client: httpx.Client, reply: Reply) -> None:
    reply("zzzzzz")
    body = {"model": MODEL, "prompt": "the", "stop": "z", "min_tokens": 3}
    assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == "zzz"


def test_the_beginning_of_a_stop_string_is_shown_when_the_text_ends_there(client: httpx.Client, reply: Reply) -> None:
    reply("one ST")
    body = {"model": MODEL, "prompt": "the", "stop": "STOP"}
    assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == "one ST"


def test_a_stop_token_ends_the_answer_and_is_not_shown(
    client: httpx.Client, reply: Reply, tokenizer: Tokenizer
) -> None:
    reply("one!two")
    body = {"model": MODEL, "prompt": "the", "stop_token_ids": [tokenizer.token_to_id("!")]}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("one", "stop")


def test_an_answer_cut_inside_a_character_ends_with_the_replacement_character(
    client: httpx.Client, reply: Reply
) -> None:
    reply("aé")
    body = {"model": MODEL, "prompt": "the", "max_tokens": 2}
    assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == "a\ufffd"


def test_the_sampling_fields_reach_the_engine(client: httpx.Client, server: Server, reply: Reply) -> None:
    reply("ok")
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.1,
        "seed": 42,
        "max_tokens": 7,
        "min_tokens": 2,
        "ignore_eos": True,
        "stop_token_ids": [5],
    }
    client.post("/v1/completions", json={"model": MODEL, "prompt": "the", **fields})
    sampling = server.engine.submits[0].sampling
    assert {name: getattr(sampling, name) for name in fields} == {**fields, "stop_token_ids": (5,)}


def test_the_defaults_are_the_apis_and_the_seed_is_random(client: httpx.Client, server: Server, reply: Reply) -> None:
    reply("ok")
    for _ in range(2):
        client.post("/v1/completions", json={"model": MODEL, "prompt": "the", "top_k": -1})
    first, second = (submit.sampling for submit in server.engine.submits)
    assert (first.temperature, first.top_p, first.top_k, first.min_p) == (1.0, 1.0, 0, 0.0)
    assert first.seed != second.seed


def test_prefix_caches_are_separated_by_key(client: httpx.Client, server: Server, reply: Reply) -> None:
    reply("ok")
    server.write_keys("sk-test-0123456789", "sk-other")
    with server.http("sk-other") as other:
        for who in (client, client, other):
            who.post("/v1/completions", json={"model": MODEL, "prompt": "the"})
    mine, again, theirs = (submit.salt for submit in server.engine.submits)
    assert mine == again != theirs


def test_a_step_of_the_engine_is_at_most_one_event(client: httpx.Client, server: Server, reply: Reply) -> None:
    tokens = reply("aaaaaaaaaa")
    server.engine.tokens_per_step = 5
    events = stream_events(client, "/v1/completions", {"model": MODEL, "prompt": "the"})
    assert len(tokens) == 10
    assert len(events) <= 3
    assert "".join(event["choices"][0]["text"] for event in events) == "aaaaaaaaaa"


def test_models_lists_the_served_name_and_its_context(server: Server) -> None:
    models = server.openai().models.list().data
    assert [model.id for model in models] == [MODEL]
    assert models[0].model_dump()["max_model_len"] == server.engine.max_model_len
    assert server.openai().models.retrieve(MODEL).id == MODEL


def test_metrics_count_a_request_under_both_names(client: httpx.Client, server: Server, reply: Reply) -> None:
    def value(line: str) -> float:
        found = [row for row in client.get("/metrics").text.splitlines() if row.startswith(line)]
        assert len(found) == 1, line
        return float(found[0].rsplit(" ", 1)[1])

    counters = [
        ('generation_tokens_total{model_name="tiny"}', 5),
        ('request_success_total{finished_reason="length",model_name="tiny"}', 1),
        ('time_to_first_token_seconds_count{model_name="tiny"}', 1),
        ('inter_token_latency_seconds_count{model_name="tiny"}', 4),
        ('e2e_request_latency_seconds_count{model_name="tiny"}', 1),
    ]
    lines = [(prefix + name, step) for prefix in ("vllm:", "deployctl_") for name, step in counters]
    before = [value(line) for line, _ in lines]
    reply("aaaaaaaaaa")
    client.post("/v1/completions", json={"model": MODEL, "prompt": "the", "max_tokens": 5})
    assert [value(line) for line, _ in lines] == [old + step for old, (_, step) in zip(before, lines, strict=True)]
    assert value('vllm:kv_cache_usage_perc{model_name="tiny"}') == 0.25
    assert value('vllm:prefix_cache_hits_total{model_name="tiny"}') == 40
    assert value('vllm:num_preemptions_total{model_name="tiny"}') == 3
    assert value('vllm:num_requests_running{model_name="tiny"}') == 1
    assert value('deployctl_seconds_since_last_request{model_name="tiny"}') < 5
