"""How a chat's body becomes what the template renders, what the grammar allows and what the parser looks for. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.server import structured
from runtime.server.errors import bounded, invalid
from runtime.server.json_text import parse_text
from runtime.server.output_parser import CALL, END_CALL, OutputParser
from runtime.server.schema import ChatBody, GenerationBody, Message, NamedTool, ObjectFormat, SchemaFormat, Tool
from runtime.server.tokenizer import ChatPrompt, ModelTokenizer


@dataclass(frozen=True, slots=True)
class Form:
    """A form that the output must have: body of a grammar, and the field that asked for it."""

    body: str
    param: str


def turns_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Turns as templates expect them. They know `system` only, which is what `developer` means to them; arguments of
    calls are objects there. Raises ApiError."""
    return [_turn(message, f"messages[{number}]") for number, message in enumerate(messages)]


def offered_tools(body: ChatBody, tokenizer: ModelTokenizer) -> list[Tool]:
    """The tools that the model is told of: none with `tool_choice: "none"`. Raises ApiError."""
    tools, choice = body.tools or [], body.tool_choice
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise invalid("two tools have the same name", "tools")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise invalid(f"{bounded(choice.function.name)!r} is not one of tools", "tool_choice")
    if choice not in (None, "none") and not tools:
        raise invalid("tool_choice needs tools", "tool_choice")
    if not tools or choice == "none":
        return []
    if tokenizer.tool_format is None:
        raise invalid("this model's chat template knows no tools", "tools")
    return tools


def template_options(body: ChatBody, tokenizer: ModelTokenizer) -> dict[str, bool]:
    """Names that the template gets beside messages and tools. Raises ApiError for one that it does not know."""
    thinking = body.chat_template_kwargs.enable_thinking
    if thinking is None:
        return {}
    if not tokenizer.can_skip_thoughts:
        raise invalid(
            "this model's chat template does not know enable_thinking", "chat_template_kwargs.enable_thinking"
        )
    return {"enable_thinking": thinking}


def asked_form(body: GenerationBody) -> Form | None:
    """What `response_format` or a `guided_*` field asks for. Raises ApiError."""
    match body.response_format:
        case ObjectFormat():
            return Form(structured.json_object(), "response_format")
        case SchemaFormat(json_schema=named):
            param = "response_format.json_schema.schema"
            return Form(structured.json_schema(named.content, param), param)
    if body.guided_json is not None:
        return Form(structured.json_schema(_schema(body.guided_json), "guided_json"), "guided_json")
    if body.guided_regex is not None:
        return Form(structured.regex(body.guided_regex, "guided_regex"), "guided_regex")
    if body.guided_choice is not None:
        return Form(structured.choice(body.guided_choice, "guided_choice"), "guided_choice")
    return None


def chat_grammar(body: ChatBody, tools: Sequence[Tool], prompt: ChatPrompt, tokenizer: ModelTokenizer) -> str | None:
    """The grammar of an answer, thoughts before it included; None where anything goes. Raises ApiError."""
    form = asked_form(body)
    if tools and form is not None:
        raise invalid(f"{form.param} and tools ask for different forms; send one", form.param)
    if tools and (body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)):
        form = _forced_calls(body, tools, tokenizer)
    if form is None:
        return None
    thinking: structured.Thinking = "possible" if tokenizer.thinks and not prompt.past_thought else "none"
    return structured.grammar(form.body, "open" if prompt.in_thought else thinking, form.param)


def text_grammar(body: GenerationBody) -> str | None:
    """The grammar of a bare completion. Raises ApiError."""
    form = asked_form(body)
    return None if form is None else structured.grammar(form.body, "none", form.param)


def parser_maker(
    body: ChatBody, tools: Sequence[Tool], prompt: ChatPrompt, tokenizer: ModelTokenizer
) -> Callable[[], OutputParser] | None:
    """Makes the parser of each choice; None where the output is plain text."""
    format = tokenizer.tool_format if tools else None
    if format is None and not tokenizer.thinks:
        return None
    one_call = body.parallel_tool_calls is False or isinstance(body.tool_choice, NamedTool)
    return lambda: OutputParser(thinks=tokenizer.thinks, in_thought=prompt.in_thought, tools=format, one_call=one_call)


def _forced_calls(body: ChatBody, tools: Sequence[Tool], tokenizer: ModelTokenizer) -> Form:
    named = body.tool_choice.function.name if isinstance(body.tool_choice, NamedTool) else None
    chosen = {
        tool.function.name: tool.function.parameters or {"type": "object"}
        for tool in tools
        if named in (None, tool.function.name)
    }
    hermes = tokenizer.tool_format == "hermes"
    begin, end = (f"{CALL}\n", f"\n{END_CALL}") if hermes else ("", "")
    several = hermes and named is None and body.parallel_tool_calls is not False
    return Form(structured.tool_calls(chosen, begin, end, several=several, param="tools"), "tools")


def _turn(message: Message, path: str) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": message.text}
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if (thoughts := message.reasoning_content or message.reasoning) is not None:
        turn["reasoning_content"] = thoughts
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": _arguments(call.function.arguments, f"{path}.tool_calls[{number}]"),
                },
            }
            for number, call in enumerate(message.tool_calls)
        ]
    return turn


def _arguments(text: str, path: str) -> object:
    return parse_text(text or "{}", f"{path}.function.arguments")


def _schema(given: object) -> object:
    return parse_text(given, "guided_json") if isinstance(given, str) else given
