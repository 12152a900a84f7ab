"""One request of a load, timed as its stream comes. The endpoint is asked as any client would ask it."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from provision.bench.prompts import Question, RandomQuestions
from provision.client import pinned_context
from provision.errors import EndpointError

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT_S = 10.0
SILENCE_TIMEOUT_S = 300.0  # longest wait for the next byte: an open load may queue for long


@dataclass(frozen=True, slots=True)
class Server:
    """An endpoint under test. `base_url` ends in /v1; `certificate` is the PEM to pin, None = the system's authorities.

    `price_per_hour` in US dollars, None = unknown.
    """

    name: str
    base_url: str
    api_key: str
    model: str
    certificate: str | None = None
    price_per_hour: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's times in seconds from the moment when it was due, and its tokens as the server counted them.

    `gaps`: seconds between pieces of text (inter-token latency where a piece is a token). `error` is None for an answer
    that ended as it should; then `ttft_s` is known.
    """

    due_s: float  # from the start of the load
    e2e_s: float
    ttft_s: float | None = None
    gaps: tuple[float, ...] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first."""
        if self.ttft_s is None or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)


def open_client(server: Server) -> httpx.AsyncClient:
    """Connections without a limit, kept alive, past any proxy of the environment. Raises EndpointError."""
    import httpx

    return httpx.AsyncClient(
        base_url=server.base_url.rstrip("/") + "/",
        headers={"Authorization": f"Bearer {server.api_key}"},
        timeout=httpx.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        trust_env=False,
        verify=True if server.certificate is None else pinned_context(server.certificate),
    )


async def ask(
    client: httpx.AsyncClient, server: Server, question: Question, *, full_length: bool, started: float, due_s: float
) -> Answer:
    """Asks and reads the whole stream. Never raises for what the endpoint does: that is the answer's `error`.

    `started` is the load's start on `time.perf_counter`. Times count from `due_s`, not from when this client found the
    time to ask, so a client that is late cannot flatter the endpoint.
    """
    import httpx

    reading = _Reading(started + due_s)
    try:
        async with client.stream("POST", "chat/completions", json=_body(server, question, full_length)) as response:
            if response.status_code != 200:
                await response.aread()
                return reading.failed(due_s, f"HTTP {response.status_code}: {_message(response)}")
            async for line in response.aiter_lines():
                reading.take(line)
    except httpx.HTTPError as error:
        return reading.failed(due_s, f"{type(error).__name__}: {error}".rstrip(": "))
    except EndpointError as error:
        return reading.failed(due_s, str(error))
    return reading.ended(due_s)


async def honours_full_length(client: httpx.AsyncClient, server: Server) -> bool:
    """Whether the endpoint knows `ignore_eos` (vLLM's extra, and ours), which makes every answer as long as asked.

    Raises EndpointError when it answers neither with it nor without.
    """
    question = Question("Hello!", 2)
    first = await ask(client, server, question, full_length=True, started=time.perf_counter(), due_s=0.0)
    if first.error is None:
        return True
    plain = await ask(client, server, question, full_length=False, started=time.perf_counter(), due_s=0.0)
    if plain.error is None:
        return False
    raise EndpointError(f"{server.name} does not answer", why=plain.error, next_command="deployctl status")


async def words_for(client: httpx.AsyncClient, server: Server, prompt_tokens: int) -> int:
    """How many random words make a prompt of about `prompt_tokens` tokens here, chat template included.

    Two probes give the template's share and the tokens per word. Raises EndpointError.
    """
    short, long = 4, 28
    counts = []
    for words in (short, long):
        question = RandomQuestions(words, output_tokens=1).question(-words)
        probe = await ask(client, server, question, full_length=False, started=time.perf_counter(), due_s=0.0)
        if probe.error is not None:
            raise EndpointError(f"{server.name} does not answer", why=probe.error, next_command="deployctl status")
        counts.append(probe.prompt_tokens)
    per_word = max((counts[1] - counts[0]) / (long - short), 0.1)
    return max(1, round((prompt_tokens - counts[0]) / per_word + short))


class _Reading:
    """What is known of one stream so far."""

    def __init__(self, due: float) -> None:
        self._due = due
        self._pieces: list[float] = []  # moments at which text came
        self._usage: tuple[int, int] | None = None
        self._finished = False

    def take(self, line: str) -> None:
        """One line of server-sent events. Raises EndpointError for an error event or something else than events."""
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            return
        now = time.perf_counter()
        try:
            event: Any = json.loads(data)
            if "error" in event:
                raise EndpointError("the stream ended with an error", why=str(event["error"].get("message")))
            for choice in event["choices"]:
                delta = choice["delta"]
                if any(delta.get(part) for part in ("content", "reasoning_content", "reasoning", "tool_calls")):
                    self._pieces.append(now)
                self._finished = self._finished or choice.get("finish_reason") is not None
            if event.get("usage"):
                self._usage = (event["usage"]["prompt_tokens"], event["usage"]["completion_tokens"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EndpointError("an event is not a chat completion chunk", why=data[:200]) from error

    def ended(self, due_s: float) -> Answer:
        if not self._finished or self._usage is None:
            return self.failed(due_s, "the stream ended early" if not self._finished else "no usage was reported")
        if not self._pieces:
            return self.failed(due_s, "the answer has no text")
        prompt, output = self._usage
        gaps = tuple(later - earlier for earlier, later in itertools.pairwise(self._pieces))
        return Answer(
            due_s=due_s,
            e2e_s=self._pieces[-1] - self._due,
            ttft_s=self._pieces[0] - self._due,
            gaps=gaps,
            prompt_tokens=prompt,
            output_tokens=output,
        )

    def failed(self, due_s: float, error: str) -> Answer:
        return Answer(due_s=due_s, e2e_s=time.perf_counter() - self._due, error=error[:200])


def _body(server: Server, question: Question, full_length: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": server.model,
        "messages": [{"role": "user", "content": question.text}],
        "max_tokens": question.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return body | {"ignore_eos": True} if full_length else body


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
