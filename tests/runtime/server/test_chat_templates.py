"""Chat templates in the forms of the models that are served: rendered as transformers does, and understood.

The templates are this project's own, short, and made of the constructs that those of Qwen2.5, Qwen3, QwQ,
DeepSeek-R1-Distill and Llama 3 are made of.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server_process import KEY, MODEL, Server
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from runtime.server.chat import parser_maker, turns_of
from runtime.server.chat_template import ChatTemplate, ChatTemplateError
from runtime.server.schema import ChatBody
from runtime.server.tokenizer import ModelTokenizer, PromptError

SPECIAL = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}

# Turns between marks; functions as JSON in a system turn; calls and results inside tags.
_OPENING = """{%- set first = messages[0] %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}{{ first.content if first.role == 'system' else '' }}
    {%- for tool in tools %}{{ '\\n' ~ (tool | tojson) }}{% endfor %}
    {{- '\\nCalls stand in <tool_call></tool_call>.<|im_end|>\\n' }}
{%- elif first.role == 'system' %}{{- '<|im_start|>system\\n' ~ first.content ~ '<|im_end|>\\n' }}
{%- endif %}
"""
_ACTIONS = """
    {%- for entry in message.tool_calls or [] %}
        {%- set made = entry.function if entry.function is defined else entry %}
        {{- '\\n<tool_call>\\n{"name": "' ~ made.name ~ '", "arguments": ' }}{{ made.arguments | tojson }}
        {{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}"""
_OBSERVED = """
    {%- elif message.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
    {%- elif message.role == 'user' or not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
"""
_ANSWERS = """{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant' }}"""

QWEN25 = (
    _OPENING
    + _ANSWERS
    + "{{- '\\n' ~ message.content if message.content }}"
    + _ACTIONS
    + _OBSERVED
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Old thoughts are cut off; the prompt opens the new ones.
QWQ = (
    _OPENING
    + _ANSWERS
    + "{{- '\\n' ~ (message.content if loop.last else message.content.split('</think>')[-1].lstrip('\\n')) }}"
    + _ACTIONS
    + _OBSERVED
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)

# Thoughts are kept after the last question only, which a walk from the end finds; `enable_thinking` closes them.
QWEN3 = (
    _OPENING
    + """{%- set seen = namespace(question=messages|length, found=false) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' and not seen.found and not message.content.startswith('<tool_response>') %}
        {%- set seen.found, seen.question = true, messages|length - loop.index %}
    {%- endif %}
{%- endfor %}
"""
    + _ANSWERS
    + """
        {%- set parts = message.content.split('</think>') %}
        {%- if message.reasoning_content is string %}{%- set thought = message.reasoning_content %}
        {%- else %}{%- set thought = parts[0].split('<think>')[-1] if parts|length > 1 else '' %}{%- endif %}
        {%- if loop.index0 > seen.question and (thought or loop.last) %}
            {{- '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n' }}
        {%- endif %}
        {{- '\\n' + parts[-1].lstrip('\\n') }}"""
    + _ACTIONS
    + _OBSERVED
    + """{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""
)

# All on one line, subscripts for members, the system text gathered first, and thoughts opened by the prompt.
R1 = (
    "{% if add_generation_prompt is not defined %}{% set add_generation_prompt = true %}{% endif %}"
    "{% set kept = namespace(system='', open=true) %}"
    "{%- for turn in messages if turn['role'] == 'system' %}{% set kept.system = turn['content'] %}{% endfor -%}"
    "{{bos_token}}{{kept.system}}{%- for turn in messages %}"
    "{%- if turn['role'] == 'user' %}{%- set kept.open = true -%}{{'<｜User｜>' + turn['content']}}"
    "{%- elif turn['role'] == 'assistant' and turn['content'] is not none %}{%- set kept.open = false -%}"
    "{{'<｜Assistant｜>' + turn['content'].split('</think>')[-1] + eos_token}}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt and kept.open %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"
)

# The date, the system text by slicing, functions in the first question with indented JSON, one call in a turn.
LLAMA3 = """{%- macro head(role) %}{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}{% endmacro %}
{%- set day = strftime_now('%d %b %Y') if strftime_now is defined else 'unknown' %}
{%- set offered = custom_tools if custom_tools is defined else tools %}
{%- set instructions = '' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set instructions, messages = messages[0]['content'] | trim, messages[1:] %}
{%- endif %}
{{- bos_token ~ head('system') ~ 'Today: ' ~ day ~ '\\n\\n' ~ instructions ~ '<|eot_id|>' }}
{%- if offered is not none %}
    {%- if not messages %}{{ raise_exception('functions need a question') }}{% endif %}
    {{- head('user') ~ 'Answer with {"name": ..., "parameters": ...}\\n\\n' -}}
    {%- for one in offered %}{{ (one | tojson(indent=4)) ~ '\\n\\n' }}{% endfor %}
    {{- messages[0]['content'] | trim ~ '<|eot_id|>' }}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if message.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}
        {%- set made = message.tool_calls[0].function %}
        {{- head('assistant') ~ '{"name": "' ~ made.name ~ '", "parameters": {' }}
        {%- for name, value in made.arguments | items %}{{ '"' ~ name ~ '": ' ~ (value | tojson) }}
        {{- ', ' if not loop.last }}{% endfor %}
        {{- '}}<|eot_id|>' }}
    {%- elif message.role in ['tool', 'ipython'] %}
        {%- set result = message.content %}
        {{- head('ipython') }}{{ result | tojson if result is mapping or result is iterable else result }}<|eot_id|>
    {%- else %}{{- head(message['role']) ~ message['content'] | trim ~ '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ head('assistant') }}{% endif %}"""

# What other families use: macros, loop controls, training marks, a refusal of roles that do not alternate.
OTHERS = """{%- macro turn(role, text) -%}[{{ role }}]{{ text | trim }}{{ eos_token }}{%- endmacro -%}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{%- continue %}{%- endif %}
    {%- if message.role == 'tool' %}{%- break %}{%- endif %}
    {%- if message.role == 'assistant' %}{% generation %}{{ turn('a', message.content) }}{% endgeneration %}
    {%- else %}{{- turn('u', message.content) }}{%- endif %}
{%- endfor %}"""

TEMPLATES = {"qwen2.5": QWEN25, "qwen3": QWEN3, "qwq": QWQ, "r1": R1, "llama3": LLAMA3, "others": OTHERS}

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Wetter in <b>Köln</b> & 'anderswo'",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["A", "B"]}}},
    },
}
_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": json.dumps({"city": "Köln <x>", "days": [1, {"until": None}]})},
}
_ASKED = {"role": "user", "content": " hi "}
_RESULT_TURN = {"role": "tool", "tool_call_id": "call_1", "content": "22"}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one turn": [_ASKED],
    "a system turn": [{"role": "system", "content": " be brief "}, _ASKED],
    "a developer turn": [{"role": "developer", "content": "be brief"}, _ASKED],
    "text in parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
    "thoughts in the text": [_ASKED, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nhello"}, _ASKED],
    "thoughts beside the text": [_ASKED, {"role": "assistant", "content": "hello", "reasoning_content": "hm"}, _ASKED],
    "a call and its result": [_ASKED, {"role": "assistant", "content": None, "tool_calls": [_CALL]}, _RESULT_TURN],
    "a call among turns": [
        _ASKED,
        {"role": "assistant", "content": "<think>x</think>so", "tool_calls": [_CALL]},
        _RESULT_TURN,
        {"role": "assistant", "content": "22 degrees"},
        _ASKED,
    ],
    "two calls": [
        _ASKED,
        {"role": "assistant", "content": "", "tool_calls": [_CALL, _CALL]},
        _RESULT_TURN,
        _RESULT_TURN,
    ],
}


def body_of(chat: list[dict[str, Any]], tools: list[dict[str, Any]]) -> ChatBody:
    return ChatBody.model_validate({"model": "m", "messages": chat, **({"tools": tools} if tools else {})})


def as_documented(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chat as Hugging Face documents it for templates: text content, arguments of calls as objects."""
    turns: list[dict[str, Any]] = json.loads(json.dumps(chat))
    for turn in turns:
        turn["role"] = "system" if turn["role"] == "developer" else turn["role"]
        if isinstance(turn["content"], list):
            turn["content"] = "\n".join(part["text"] for part in turn["content"])
        turn["content"] = turn["content"] or ""
        for call in turn.get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return turns


def outcome(render: Callable[[], str]) -> str:
    """The text, or that there is none: both sides must refuse the same chats."""
    try:
        return render()
    except Exception:
        return "refused"


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("family", TEMPLATES)
def test_a_chat_renders_as_transformers_renders_it(family: str, chat: list[dict[str, Any]]) -> None:
    source = TEMPLATES[family]
    template = ChatTemplate(source, SPECIAL)
    for tools in ([], [TOOL, TOOL]):
        for options in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
            body = body_of(chat, tools)
            offered = [tool.model_dump(exclude_none=True) for tool in body.tools or []]
            ours = outcome(lambda: template.render(turns_of(body.messages), offered, options))  # noqa: B023
            theirs = outcome(
                lambda: render_jinja_template(
                    [as_documented(chat)],
                    tools=tools or None,  # noqa: B023
                    chat_template=source,
                    add_generation_prompt=True,
                    **options,  # noqa: B023
                    **SPECIAL,
                )[0][0]
            )
            assert ours == theirs


def test_a_chat_is_refused_where_the_template_refuses_it() -> None:
    with pytest.raises(ChatTemplateError, match="one call at a time"):
        ChatTemplate(LLAMA3, SPECIAL).render(turns_of(body_of(CHATS["two calls"], []).messages))


def model(tokenizer: Tokenizer, family: str) -> ModelTokenizer:
    return ModelTokenizer(tokenizer, ChatTemplate(TEMPLATES[family], SPECIAL))


@pytest.mark.parametrize(
    ("family", "tools", "thinks", "can_skip"),
    [
        ("qwen2.5", "hermes", False, False),
        ("qwen3", "hermes", True, True),
        ("qwq", "hermes", True, False),
        ("r1", None, True, False),
        ("llama3", "llama3", False, False),
        ("others", None, False, False),
    ],
)
def test_a_template_tells_how_its_model_thinks_and_calls(
    tokenizer: Tokenizer, family: str, tools: str | None, thinks: bool, can_skip: bool
) -> None:
    found = model(tokenizer, family)
    assert (found.tool_format, found.thinks, found.can_skip_thoughts) == (tools, thinks, can_skip)


@pytest.mark.parametrize(
    ("family", "options", "written"),
    [
        ("qwen3", {}, "<think>\nhm\n</think>\n\nhello"),
        ("qwen3", {"enable_thinking": False}, "hello"),
        ("qwq", {}, "hm\n</think>\n\nhello"),
        ("r1", {}, "hm\n</think>\n\nhello"),
        ("qwen2.5", {}, "hello"),
    ],
)
def test_thoughts_are_told_from_the_answer_however_the_prompt_ends(
    tokenizer: Tokenizer, family: str, options: dict[str, bool], written: str
) -> None:
    found = model(tokenizer, family)
    body = body_of(CHATS["one turn"], [])
    prompt = found.encode_chat(turns_of(body.messages), 10_000, options=options)
    make = parser_maker(body, [], prompt, found)
    if make is None:
        assert not found.thinks
        return
    parser = make()
    pieces = [*(parser.feed(character) for character in written), parser.flush()]
    assert "".join(piece.text for piece in pieces) == "hello"
    assert "".join(piece.reasoning for piece in pieces) == ("hm" if "hm" in written else "")


@pytest.mark.parametrize("family", ["r1", "others"])
def test_calls_are_refused_where_the_template_would_drop_them(tokenizer: Tokenizer, family: str) -> None:
    body = body_of(CHATS["a call and its result"], [])
    with pytest.raises(PromptError, match="knows no tools"):
        model(tokenizer, family).encode_chat(turns_of(body.messages), 10_000)


@pytest.mark.parametrize(
    "hostile",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{% for i in range(10000000000) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_a_template_reaches_nothing_but_its_chat(hostile: str) -> None:
    template = ChatTemplate(hostile, SPECIAL)
    with pytest.raises(ChatTemplateError):
        template.render(turns_of(body_of(CHATS["one turn"], []).messages))


def test_a_chat_that_renders_slowly_holds_nobody_up(
    make_server: Callable[..., Server], model_folder: Path, tmp_path: Path
) -> None:
    slow = "{%- for a in range(6000) %}{%- for b in range(3000) %}{%- endfor %}{%- endfor %}" + QWEN25
    shutil.copy(model_folder / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": slow}))
    server = make_server(weights=False)
    server.write_weights(tmp_path)
    server.engine.start()
    server.launch()
    server.wait_healthy()
    body = json.dumps({"model": MODEL, "messages": [_ASKED], "max_tokens": 1}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
        connection.sendall(head.encode() + body)
        for _ in range(5):
            assert server.health().status_code == 200
        assert not server.engine.submits, "five answers took longer than the rendering"
        server.engine.wait_for(lambda: bool(server.engine.submits), "the slow chat reaches the engine")
