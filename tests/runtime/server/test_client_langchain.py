"""LangChain's ChatOpenAI, as it comes: asked, streamed, with tools bound and with structured answers."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from engine_double import DEADLINE_S
from pydantic import BaseModel, SecretStr
from server_process import KEY, MODEL, Server
from tokenizers import Tokenizer
from tool_model import CALL, write_tool_model

if TYPE_CHECKING:
    from langchain_openai import ChatOpenAI

pytestmark = pytest.mark.slow  # its import alone takes seconds
Reply = Callable[[str], list[int]]


class City(BaseModel):
    """A city."""

    name: str
    people: int


@pytest.fixture(scope="module")
def shared_server(
    make_server: Callable[..., Server], model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Server:
    server = make_server(weights=False)
    server.write_weights(write_tool_model(tmp_path_factory.mktemp("tools"), model_folder))
    server.engine.start()
    server.launch()
    server.wait_healthy()
    return server


@pytest.fixture
def chat(server: Server) -> ChatOpenAI:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(
        model=MODEL, base_url=f"{server.url}/v1", api_key=SecretStr(KEY), max_retries=0, timeout=DEADLINE_S
    )


def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def test_a_question_is_answered(chat: ChatOpenAI, reply: Reply) -> None:
    tokens = reply("Bonjour")
    answer = chat.invoke([("system", "be brief"), ("user", "hi")])
    assert answer.content == "Bonjour"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == len(tokens) + 1


def test_an_answer_is_streamed(chat: ChatOpenAI, reply: Reply) -> None:
    reply("one two three")
    assert "".join([str(chunk.content) for chunk in chat.stream("count")]) == "one two three"


def test_an_answer_is_streamed_asynchronously(chat: ChatOpenAI, reply: Reply) -> None:
    reply("one two three")

    async def run() -> str:
        return "".join([str(chunk.content) async for chunk in chat.astream("count")])

    assert asyncio.run(run()) == "one two three"


def test_a_bound_tool_is_called_and_its_result_answered(
    chat: ChatOpenAI, server: Server, tokenizer: Tokenizer, reply: Reply
) -> None:
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

    reply(CALL)
    bound = chat.bind_tools([weather])
    asked = bound.invoke([HumanMessage("how is it?")])
    assert isinstance(asked, AIMessage)
    (call,) = asked.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Paris"})
    reply("It is sunny.")
    result = ToolMessage(weather(**call["args"]), tool_call_id=str(call["id"]))
    assert bound.invoke([HumanMessage("how is it?"), asked, result]).content == "It is sunny."
    assert "sunny in Paris" in tokenizer.decode(server.engine.submits[-1].prompt, skip_special_tokens=False)


def test_a_streamed_call_adds_up(chat: ChatOpenAI, reply: Reply) -> None:
    reply(CALL)
    chunks = chat.bind_tools([weather], tool_choice="weather").stream("how is it?")
    (call,) = functools.reduce(lambda whole, chunk: whole + chunk, chunks).tool_calls  # type: ignore[arg-type, return-value]
    assert (call["name"], call["args"]) == ("weather", {"city": "Paris"})


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_an_answer_is_structured(chat: ChatOpenAI, reply: Reply, method: str) -> None:
    if method == "function_calling":
        reply('<tool_call>\n{"name": "City", "arguments": {"name": "Paris", "people": 2}}\n</tool_call>')
    else:
        reply('{"name": "Paris", "people": 2}')
    structured = chat.with_structured_output(City, method=method)  # type: ignore[arg-type]
    assert structured.invoke("which city?") == City(name="Paris", people=2)
