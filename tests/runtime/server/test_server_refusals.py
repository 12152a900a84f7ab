"""What is not honoured is refused with 400, by name; what is too much, with its number."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from server_process import MODEL, Server

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": MODEL, "prompt": "the"}
PATHS = {"chat": ("/v1/chat/completions", CHAT), "text": ("/v1/completions", TEXT)}

# endpoint, field, a value that asks for something, values that ask for nothing
NotYet = tuple[str, str, Any, list[Any]]

_BOTH: list[tuple[str, Any, list[Any]]] = [
    ("length_penalty", 2, [None, 1.0]),
    ("include_stop_str_in_output", True, [None, False]),
    ("skip_special_tokens", False, [None, True]),
    ("use_beam_search", True, [None, False]),
    ("priority", 1, [None, 0]),
    ("prompt_logprobs", 1, [None]),
    ("truncate_prompt_tokens", 5, [None]),
]
NOT_YET: list[NotYet] = [
    *[("chat", *row) for row in _BOTH],
    *[("text", *row) for row in _BOTH],
    ("chat", "functions", [{"name": "f"}], [None, []]),
    ("chat", "function_call", "auto", [None, "none"]),
    ("chat", "modalities", ["audio"], [None, ["text"]]),
    ("chat", "reasoning_effort", "high", [None]),
    ("chat", "continue_final_message", True, [None, False]),
    ("chat", "echo", True, [None, False]),
    ("chat", "store", True, [None, False]),
    ("text", "best_of", 2, [None, 1]),
    ("text", "suffix", "x", [None, ""]),
]

WRONG: list[tuple[str, dict[str, Any], str]] = [
    # endpoint, fields, the field that the error names
    ("chat", {"temprature": 1}, "temprature"),
    ("text", {"messages": []}, "messages"),
    ("chat", {"temperature": 3}, "temperature"),
    ("chat", {"n": 17}, "n"),
    ("chat", {"n": 0}, "n"),
    ("text", {"prompt": ["a"] * 40, "n": 2}, "n"),
    ("chat", {"presence_penalty": 2.1}, "presence_penalty"),
    ("chat", {"frequency_penalty": -3}, "frequency_penalty"),
    ("chat", {"repetition_penalty": 0}, "repetition_penalty"),
    ("chat", {"logit_bias": {"x": 1}}, "logit_bias"),
    ("chat", {"logit_bias": {"5": 101}}, "logit_bias"),
    ("chat", {"logit_bias": {"5": True}}, "logit_bias"),
    ("chat", {"logit_bias": {"99999": 1}}, "logit_bias"),
    ("chat", {"stop_token_ids": [99999]}, "stop_token_ids"),
    ("chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ("text", {"logprobs": 21}, "logprobs"),
    ("chat", {"temperature": "0.5"}, "temperature"),
    ("chat", {"temperature": True}, "temperature"),
    ("chat", {"top_p": 0}, "top_p"),
    ("chat", {"top_k": -2}, "top_k"),
    ("chat", {"min_p": 2}, "min_p"),
    ("chat", {"max_tokens": 0}, "max_tokens"),
    ("chat", {"max_tokens": 1.5}, "max_tokens"),
    ("chat", {"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
    ("chat", {"max_tokens": 5, "min_tokens": 6}, "min_tokens"),
    ("chat", {"seed": 2**64}, "seed"),
    ("chat", {"stop": ["x"] * 17}, "stop"),
    ("chat", {"stop": "x" * 257}, "stop[0]"),
    ("chat", {"stop": ""}, "stop[0]"),
    ("chat", {"stop": [1]}, "stop[0]"),
    ("chat", {"stream": 1}, "stream"),
    ("chat", {"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ("chat", {"messages": []}, "messages"),
    ("chat", {"messages": "hi"}, "messages"),
    ("chat", {"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
    ("chat", {"messages": [{"role": "user", "content": "hi", "x": 1}]}, "messages[0].x"),
    (
        "chat",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]},
        "messages[0].content[0].type",
    ),
    ("chat", {"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
    ("text", {"prompt": ""}, "prompt"),
    ("text", {"prompt": []}, "prompt"),
    ("text", {"prompt": [[]]}, "prompt"),
    ("text", {"prompt": ["a", [1]]}, "prompt"),
    ("text", {"prompt": ["a", 1]}, "prompt"),
    ("text", {"prompt": [True]}, "prompt"),
    ("text", {"prompt": {"x": 1}}, "prompt"),
    ("text", {"prompt": ["a"] * 65}, "prompt"),
    ("text", {"prompt": [10, 100000]}, "prompt"),
    ("text", {"prompt": [-1]}, "prompt"),
]


def post(client: httpx.Client, endpoint: str, fields: dict[str, Any]) -> httpx.Response:
    path, base = PATHS[endpoint]
    return client.post(path, json={**base, **fields})


def refusal(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(("endpoint", "field", "asks", "neutral"), NOT_YET)
def test_a_field_of_a_later_version_is_refused_unless_it_asks_for_nothing(
    client: httpx.Client, endpoint: str, field: str, asks: Any, neutral: list[Any]
) -> None:
    error = refusal(post(client, endpoint, {field: asks}))
    assert error["param"] == field
    assert "not supported yet" in error["message"]
    assert [post(client, endpoint, {field: value}).status_code for value in neutral] == [200] * len(neutral)


@pytest.mark.parametrize(("endpoint", "fields", "param"), WRONG)
def test_a_wrong_field_is_refused_by_its_path(
    client: httpx.Client, endpoint: str, fields: dict[str, Any], param: str
) -> None:
    path, base = PATHS[endpoint]
    body = json.dumps({**base, **fields})  # with ASCII escapes, which is how a lone surrogate travels
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert refusal(answer)["param"] == param


def test_stream_options_need_a_stream(client: httpx.Client) -> None:
    error = refusal(post(client, "chat", {"stream_options": {"include_usage": True}}))
    assert "stream: true" in error["message"]


def test_every_wrong_field_is_named_at_once(client: httpx.Client) -> None:
    error = refusal(post(client, "chat", {"temperature": 9, "top_p": 9, "colour": "red"}))
    assert all(name in error["message"] for name in ("temperature", "top_p", "colour"))


def test_an_error_never_sends_back_more_than_a_bounded_text(client: httpx.Client) -> None:
    fields = {"x" * 5000 + str(i): 1 for i in range(150)}
    answer = post(client, "chat", fields)
    assert answer.status_code == 400
    assert len(answer.content) < 5000


def test_another_model_is_a_404_that_names_the_served_one(server: Server) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        server.openai().completions.create(model="gpt-x", prompt="the")
    assert refused.value.code == "model_not_found"
    assert MODEL in str(refused.value)


def test_a_missing_model_is_named(client: httpx.Client) -> None:
    assert refusal(client.post("/v1/completions", json={"prompt": "x"}))["param"] == "model"


@pytest.mark.parametrize(("endpoint", "field"), [("chat", "max_completion_tokens"), ("text", "max_tokens")])
def test_more_tokens_than_the_context_is_a_400_with_the_numbers(
    client: httpx.Client, server: Server, endpoint: str, field: str
) -> None:
    error = refusal(post(client, endpoint, {field: server.engine.max_model_len}))
    assert (error["code"], error["param"]) == ("context_length_exceeded", field)
    assert str(server.engine.max_model_len) in error["message"]


@pytest.mark.parametrize("length", [300, 100_000], ids=["tokenized", "too long to tokenize"])
def test_a_prompt_over_the_context_is_a_400_and_never_reaches_the_engine(
    client: httpx.Client, server: Server, length: int
) -> None:
    error = refusal(post(client, "text", {"prompt": "Z" * length}))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert server.engine.submits == []


def test_a_body_that_is_no_json_is_a_400(client: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    error = refusal(client.post("/v1/completions", content=b'{"model": ', headers=headers))
    assert "not JSON" in error["message"]


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"null", b"3"])
def test_a_body_that_is_no_object_is_a_400(client: httpx.Client, content: bytes) -> None:
    refusal(client.post("/v1/completions", content=content, headers={"Content-Type": "application/json"}))


@pytest.mark.parametrize("announced", [True, False], ids=["content-length", "chunked"])
def test_a_body_over_the_limit_is_a_413(client: httpx.Client, announced: bool) -> None:
    size = 2 * 2**20
    pieces = (b"x" * 65536 for _ in range(size // 65536))
    content = b"x" * size if announced else pieces
    answer = client.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert refusal(answer, 413)["code"] == "body_too_large"


def test_an_unknown_path_is_a_404_in_the_envelope(client: httpx.Client) -> None:
    assert "/v1" in refusal(client.get("/v2/completions"), 404)["message"]


def test_a_wrong_method_is_a_405_in_the_envelope_with_the_right_ones(client: httpx.Client) -> None:
    answer = client.get("/v1/completions")
    refusal(answer, 405)
    assert answer.headers["allow"] == "POST"
