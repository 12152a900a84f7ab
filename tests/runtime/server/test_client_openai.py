"""The openai package, as it comes: synchronous, asynchronous, streamed, with tools and with parsed answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
from engine_double import DEADLINE_S
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel
from server_process import KEY, MODEL, Server
from tokenizers import Tokenizer
from tool_model import CALL, write_tool_model

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
Reply = Callable[[str], list[int]]


class City(BaseModel):
    """What an answer is parsed into."""

    name: str
    people: int


class weather(BaseModel):
    """The weather of a city."""

    city: str


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


def asynchronous(server: Server) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=DEADLINE_S)


def test_an_answer_comes_whole(server: Server, reply: Reply) -> None:
    tokens = reply("Bonjour, été 🎉")
    answer = server.openai().chat.completions.create(model=MODEL, messages=MESSAGES)
    assert answer.choices[0].message.content == "Bonjour, été 🎉"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(tokens) + 1


def test_an_answer_comes_in_pieces(server: Server, reply: Reply) -> None:
    reply("Bonjour, été 🎉")
    stream = server.openai().chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Bonjour, été 🎉"
    assert chunks[-1].usage is not None


def test_many_answers_come_at_once_and_in_pieces_to_an_asynchronous_client(server: Server, reply: Reply) -> None:
    reply("one two three")

    async def ask(client: openai.AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def run() -> list[str]:
        async with asynchronous(server) as client:
            return await asyncio.gather(*(ask(client) for _ in range(8)))

    assert asyncio.run(run()) == ["one two three"] * 8


def test_an_asynchronous_client_completes_a_text(server: Server, reply: Reply) -> None:
    reply(" time")

    async def run() -> str:
        async with asynchronous(server) as client:
            answer = await client.completions.create(model=MODEL, prompt="once upon a", max_tokens=20)
            return answer.choices[0].text

    assert asyncio.run(run()) == " time"


def test_a_round_of_tools_ends_in_an_answer(server: Server, tokenizer: Tokenizer, reply: Reply) -> None:
    client = server.openai()
    tools = [openai.pydantic_function_tool(weather)]
    reply(CALL)
    asked = client.chat.completions.parse(model=MODEL, messages=MESSAGES, tools=tools).choices[0].message
    assert asked.tool_calls is not None
    (call,) = asked.tool_calls
    assert call.function.parsed_arguments == weather(city="Paris")
    reply("It is sunny.")
    # The message goes back as it came, with all its members, which is what the package's own examples do.
    messages: list[ChatCompletionMessageParam] = [
        *MESSAGES,
        asked,  # type: ignore[list-item]
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=tools)
    assert answer.choices[0].message.content == "It is sunny."
    prompt = tokenizer.decode(server.engine.submits[-1].prompt, skip_special_tokens=False)
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>' in prompt


def test_an_answer_is_parsed_into_a_model(server: Server, reply: Reply) -> None:
    reply('{"name": "Paris", "people": 2100000}')
    answer = server.openai().chat.completions.parse(model=MODEL, messages=MESSAGES, response_format=City)
    assert answer.choices[0].message.parsed == City(name="Paris", people=2100000)
    assert server.engine.submits[0].sampling.grammar is not None


def test_the_events_of_the_streaming_helper_add_up(server: Server, reply: Reply) -> None:
    reply(CALL)
    tools = [openai.pydantic_function_tool(weather)]
    with server.openai().chat.completions.stream(model=MODEL, messages=MESSAGES, tools=tools) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    assert kinds.count("tool_calls.function.arguments.done") == 1
    assert final.choices[0].message.tool_calls is not None
    assert final.choices[0].message.tool_calls[0].function.parsed_arguments == weather(city="Paris")


def test_the_models_are_listed(server: Server) -> None:
    assert [model.id for model in server.openai().models.list()] == [MODEL]


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.embeddings.create(model=MODEL, input="hi"),
        lambda client: client.responses.create(model=MODEL, input="hi"),
        lambda client: client.moderations.create(input="hi"),
    ],
    ids=["embeddings", "responses", "moderations"],
)
def test_what_is_not_served_is_refused_with_a_reason(server: Server, call: Callable[[openai.OpenAI], object]) -> None:
    with pytest.raises(openai.NotFoundError, match="not served here"):
        call(server.openai())
