"""What a user of LiteLLM writes. Arguments: URL, KEY, MODEL; prints one JSON object."""

from __future__ import annotations

import asyncio
import json
import sys

import litellm

url, key, model = sys.argv[1:]
messages = [{"role": "user", "content": "hi"}]
parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
options = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": key, "messages": messages, "num_retries": 0}


async def streamed() -> str:
    """Pieces of an answer, as they come."""
    stream = await litellm.acompletion(**options, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def many() -> list[str]:
    """Four answers at once."""
    answers = await asyncio.gather(*(litellm.acompletion(**options) for _ in range(4)))
    return [answer.choices[0].message.content for answer in answers]


whole = litellm.completion(**options, max_tokens=100, temperature=0)
pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**options, stream=True)]
offered = litellm.completion(**options, tools=tools, tool_choice="auto")
try:
    litellm.completion(**options, n=99)
    refused = ""
except litellm.BadRequestError as error:
    refused = str(error)
print(
    json.dumps(
        {
            "whole": whole.choices[0].message.content,
            "completion_tokens": whole.usage.completion_tokens,
            "pieces": pieces,
            "offered": offered.choices[0].message.content,
            "streamed": asyncio.run(streamed()),
            "many": asyncio.run(many()),
            "refused": refused,
        }
    )
)
