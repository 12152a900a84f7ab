"""Tools, thoughts and structured output, as the openai client sees them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel
from server_process import MODEL, Server
from tokenizers import Tokenizer

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "weather", "description": "the weather", "parameters": SCHEMA},
}
OTHER: ChatCompletionToolParam = {"type": "function", "function": {"name": "clock"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
# The shape of Qwen3's: tools in the system turn, thoughts that the prompt may skip.
TEMPLATE = (
    "{%- if tools %}<|im_start|>system\n"
    "{% for tool in tools %}{{ tool.function.name }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function.arguments.city }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)
Reply = Callable[[str], list[int]]


@pytest.fixture(scope="module")
def thinker(make_server: Callable[..., Server], model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A ready server whose model knows tools and thinks."""
    folder = tmp_path_factory.mktemp("thinker")
    shutil.copy(model_folder / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    server = make_server(weights=False)
    server.write_weights(folder)
    server.engine.start()
    server.launch()
    server.wait_healthy()
    return server


@pytest.fixture
def server(thinker: Server) -> Server:
    thinker.engine.reset()
    return thinker


def prompt_of(server: Server, tokenizer: Tokenizer) -> str:
    text: str = tokenizer.decode(server.engine.submits[0].prompt, skip_special_tokens=False)
    return text


def test_a_call_of_a_tool_is_an_entry_of_tool_calls(server: Server, reply: Reply) -> None:
    reply(CALL)
    answer = server.openai().chat.completions.create(model=MODEL, messages=MESSAGES, tools=[TOOL])
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Paris"})
    assert call.id.startswith("call_")


def test_streamed_calls_add_up(server: Server, reply: Reply) -> None:
    reply(f"{CALL}\n{CALL}")
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    finishes = []
    for chunk in server.openai().chat.completions.create(model=MODEL, messages=MESSAGES, tools=[TOOL], stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            assert call.function is not None
            names[call.index] = names.get(call.index, "") + (call.function.name or "")
            arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
        finishes.append(chunk.choices[0].finish_reason)
    assert names == {0: "weather", 1: "weather"}
    assert [json.loads(text) for text in arguments.values()] == [{"city": "Paris"}] * 2
    assert finishes[-1] == "tool_calls"


def test_the_template_is_told_of_the_tools(server: Server, tokenizer: Tokenizer, reply: Reply) -> None:
    reply("ok")
    server.openai().chat.completions.create(model=MODEL, messages=MESSAGES, tools=[TOOL])
    assert "weather" in prompt_of(server, tokenizer)


def test_tool_choice_none_offers_no_tool_and_finds_no_call(server: Server, tokenizer: Tokenizer, reply: Reply) -> None:
    reply(CALL)
    answer = server.openai().chat.completions.create(model=MODEL, messages=MESSAGES, tools=[TOOL], tool_choice="none")
    assert "weather" not in prompt_of(server, tokenizer)
    assert answer.choices[0].message.content == CALL
    assert answer.choices[0].finish_reason == "stop"


def test_results_of_tools_go_back_to_the_model(server: Server, tokenizer: Tokenizer, reply: Reply) -> None:
    reply("sunny")
    function: Any = {"name": "weather", "arguments": '{"city": "Rome"}'}
    messages: list[ChatCompletionMessageParam] = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c1", "content": "22 degrees"},
    ]
    server.openai().chat.completions.create(model=MODEL, messages=messages, tools=[TOOL])
    prompt = prompt_of(server, tokenizer)
    assert "<tool_call>Rome</tool_call>" in prompt
    assert "22 degrees" in prompt


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_forced_call_reaches_the_engine_as_a_grammar(server: Server, reply: Reply, choice: Any) -> None:
    reply(CALL)
    server.openai().chat.completions.create(model=MODEL, messages=MESSAGES, tools=[TOOL, OTHER], tool_choice=choice)
    grammar = server.engine.submits[0].sampling.grammar
    assert grammar is not None
    assert "<tool_call>" in grammar
    assert ("clock" in grammar) == (choice == "required")


def test_a_free_choice_has_no_grammar(server: Server, reply: Reply) -> None:
    reply("ok")
    server.openai().chat.completions.create(model=MODEL, messages=MESSAGES, tools=[TOOL], tool_choice="auto")
    assert server.engine.submits[0].sampling.grammar is None


def test_thoughts_have_fields_of_their_own_under_both_names(server: Server, reply: Reply) -> None:
    reply("<think>\nhm\n</think>\n\nyes")
    message = server.openai().chat.completions.create(model=MODEL, messages=MESSAGES).choices[0].message
    extra = message.model_extra or {}
    assert (message.content, extra["reasoning_content"], extra["reasoning"]) == ("yes", "hm", "hm")


def test_streamed_thoughts_come_before_the_answer(server: Server, reply: Reply) -> None:
    reply("<think>hm</think>yes")
    said: list[tuple[str, str]] = []
    for chunk in server.openai().chat.completions.create(model=MODEL, messages=MESSAGES, stream=True):
        delta = chunk.choices[0].delta
        said.append(((delta.model_extra or {}).get("reasoning_content") or "", delta.content or ""))
    assert "".join(thought for thought, _ in said) == "hm"
    assert "".join(text for _, text in said) == "yes"


def test_thinking_can_be_switched_off_where_the_template_can(
    server: Server, tokenizer: Tokenizer, reply: Reply
) -> None:
    reply("yes")
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    server.openai().chat.completions.create(model=MODEL, messages=MESSAGES, extra_body=extra)
    assert prompt_of(server, tokenizer).endswith("<think>\n\n</think>\n\n")


class Weather(BaseModel):
    city: str


def test_json_schema_reaches_the_engine_and_the_client_parses_the_answer(server: Server, reply: Reply) -> None:
    reply('{"city": "Oslo"}')
    answer = server.openai().beta.chat.completions.parse(model=MODEL, messages=MESSAGES, response_format=Weather)
    assert answer.choices[0].message.parsed == Weather(city="Oslo")
    grammar = server.engine.submits[0].sampling.grammar
    assert grammar is not None
    assert '"city"' in grammar
    assert "</think>" in grammar.replace("\\", "")  # it may think first


@pytest.mark.parametrize(
    "form",
    [
        {"response_format": {"type": "json_object"}},
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
        {"guided_regex": r"\d{3}/\d+"},
        {"guided_choice": ["yes", 'no "way"']},
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_every_form_is_a_grammar_on_both_endpoints(
    server: Server, reply: Reply, path: str, form: dict[str, Any]
) -> None:
    reply("yes")
    prompt = {"prompt": "hi"} if path == "/v1/completions" else {"messages": MESSAGES}
    with server.http() as client:
        answer = client.post(path, json={"model": MODEL, **prompt, **form})
    assert answer.status_code == 200, answer.text
    assert server.engine.submits[0].sampling.grammar is not None


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


REFUSED: list[tuple[dict[str, Any], str | None]] = [
    ({"guided_json": {"type": "nonsense"}}, "guided_json"),
    ({"guided_json": {"not": {"type": "string"}}}, "guided_json"),
    ({"guided_json": {"$ref": "http://127.0.0.1:9/schema"}}, "guided_json"),
    ({"guided_json": nested(20)}, "guided_json"),
    ({"guided_json": {"enum": ["x" * 70_000]}}, "guided_json"),
    ({"guided_json": "{"}, "guided_json"),
    ({"guided_json": "[]"}, "guided_json"),
    ({"guided_regex": "("}, "guided_regex"),
    ({"guided_regex": "(?=a)b"}, "guided_regex"),
    ({"guided_regex": "(a{1000}){1000}"}, "guided_regex"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_choice": ["a", ""]}, "guided_choice"),
    ({"guided_choice": ["a"], "guided_regex": "b"}, None),
    ({"guided_choice": ["a"], "min_tokens": 3}, "min_tokens"),
    ({"guided_choice": ["a"], "ignore_eos": True}, "ignore_eos"),
    ({"guided_choice": ["a"], "tools": [TOOL]}, "guided_choice"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL, TOOL]}, "tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice"),
    ({"tools": [{"type": "function", "function": {"name": "bad name"}}]}, "tools[0].function.name"),
    ({"tools": [TOOL], "tool_choice": "required", "n": 17}, "n"),
    ({"chat_template_kwargs": {"add_generation_prompt": False}}, "chat_template_kwargs.add_generation_prompt"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(server: Server, fields: dict[str, Any], param: str | None) -> None:
    with server.http() as client:
        answer = client.post("/v1/chat/completions", json={"model": MODEL, "messages": MESSAGES, **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert len(answer.json()["error"]["message"]) < 600


def test_a_model_without_tools_in_its_template_refuses_them(shared_server: Server) -> None:
    shared_server.engine.reset()
    with pytest.raises(openai.BadRequestError, match="knows no tools"):
        shared_server.openai().chat.completions.create(model=MODEL, messages=MESSAGES, tools=[TOOL])


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


def test_arguments_of_earlier_calls_must_be_json(client: httpx.Client) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{"}}
    messages = [*MESSAGES, {"role": "assistant", "tool_calls": [call]}]
    answer = client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages})
    assert (answer.status_code, answer.json()["error"]["param"]) == (
        400,
        "messages[1].tool_calls[0].function.arguments",
    )
