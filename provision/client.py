"""A small client of the OpenAI API, for the proof at the end of `up` and for `chat`."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from provision.errors import EndpointError

if TYPE_CHECKING:
    import ssl

    import httpx

CONNECT_TIMEOUT_S = 5.0
SILENCE_TIMEOUT_S = 120.0  # longest wait for the next byte of an answer


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished answer; token counts as the server reports them."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class OpenAIClient:
    """Completions of one endpoint. `base_url` ends in /v1. Use as a context manager.

    `certificate`: the one PEM that the endpoint must show, for the address that is asked; nobody else is trusted.

    >>> with OpenAIClient("http://127.0.0.1:8000/v1", key) as client:
    ...     client.complete("demo", [Message("user", "Hello!")], max_tokens=16).text
    """

    def __init__(self, base_url: str, api_key: str, certificate: str | None = None) -> None:
        import httpx

        self.base_url = base_url
        timeout = httpx.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        headers = {"Authorization": f"Bearer {api_key}"}
        # A proxy from the environment must not see requests to this machine.
        verify = True if certificate is None else pinned_context(certificate)
        self._http = httpx.Client(headers=headers, timeout=timeout, trust_env=False, verify=verify)

    def __enter__(self) -> OpenAIClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def complete(self, model: str, messages: list[Message], *, max_tokens: int) -> Completion:
        """One greedy answer. Raises EndpointError."""
        body = _chat_body(model, messages) | {"max_tokens": max_tokens, "temperature": 0}
        return self._ask("chat/completions", body)

    def continue_text(self, model: str, prompt: str, *, max_tokens: int) -> Completion:
        """What greedily follows `prompt`, without a chat template. Raises EndpointError."""
        body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        return self._ask("completions", body)

    def status_of(self, route: str) -> int:
        """HTTP status of a GET. Raises EndpointError."""
        import httpx

        try:
            return self._http.get(f"{self.base_url}/{route}").status_code
        except httpx.HTTPError as error:
            raise self._broken(error) from error

    def _ask(self, route: str, body: dict[str, Any]) -> Completion:
        import httpx

        try:
            response = self._http.post(f"{self.base_url}/{route}", json=body)
        except httpx.HTTPError as error:
            raise self._broken(error) from error
        self._refuse_status(response)
        try:
            answer = response.json()
            choice, usage = answer["choices"][0], answer["usage"]
            text = choice["message"]["content"] if "message" in choice else choice["text"]
            return Completion(text or "", usage["prompt_tokens"], usage["completion_tokens"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise self._broken(error, "the answer is not a completion") from error

    def stream(
        self, model: str, messages: list[Message], *, temperature: float, max_tokens: int | None = None
    ) -> Generator[str]:
        """Pieces of one answer as they come. Closing the iterator stops the answer. Raises EndpointError."""
        import httpx

        body = _chat_body(model, messages) | {"stream": True, "temperature": temperature}
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        try:
            with self._http.stream("POST", f"{self.base_url}/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    self._refuse_status(response)
                finished = False
                for line in response.iter_lines():
                    if line == "data: [DONE]":
                        return
                    if line.startswith("data:"):
                        piece, ended = self._delta(line.removeprefix("data:"))
                        finished = finished or ended
                        if piece:
                            yield piece
                if not finished:
                    raise EndpointError("the answer broke off", why="the connection closed before the last event")
        except httpx.HTTPError as error:
            raise self._broken(error) from error

    def _delta(self, data: str) -> tuple[str, bool]:
        """(new text, whether the answer ends here) of one event."""
        try:
            event: Any = json.loads(data)
            if "error" in event:
                raise EndpointError("the answer broke off", why=str(event["error"].get("message")))
            choices = event["choices"]
            if not choices:
                return "", False
            return choices[0]["delta"].get("content") or "", choices[0].get("finish_reason") is not None
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise self._broken(error, "an event of the stream is not a chat completion chunk") from error

    def _refuse_status(self, response: httpx.Response) -> None:
        if response.status_code == 200:
            return
        reason = _error_message(response)
        if response.status_code == 401:
            raise EndpointError("the endpoint refuses the API key", why=reason)
        if response.status_code == 503:
            raise EndpointError("the endpoint is not ready", why=reason, next_command="deployctl status")
        raise EndpointError(f"the endpoint answered with status {response.status_code}", why=reason)

    def _broken(self, error: Exception, what: str = "the endpoint does not answer") -> EndpointError:
        reason = f"{self.base_url}: {type(error).__name__}: {error}"
        return EndpointError(what, why=reason, next_command="deployctl status")


def pinned_context(certificate: str) -> ssl.SSLContext:
    """TLS that trusts `certificate` (PEM) alone, and checks that it names the host. Raises EndpointError."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=certificate)
    except (ssl.SSLError, ValueError) as error:
        raise EndpointError("the endpoint's certificate cannot be read", why=str(error)) from error
    return context


def _chat_body(model: str, messages: list[Message]) -> dict[str, Any]:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return {"model": model, "messages": turns}


def _error_message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
