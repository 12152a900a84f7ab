"""`deployctl chat`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from provision.cli.names import NameOption, find_target
from provision.cli.output import JsonFlag, emit, emit_json, say
from provision.client import Message, OpenAIClient
from provision.errors import EndpointError, UsageError

app = typer.Typer(add_completion=False)
PROMPT = "you> "
PIECES_LIMIT = 512  # of one answer without --max-tokens: small models may repeat themselves to the end of the context


@app.command()
def chat(
    prompt: Annotated[
        str | None, typer.Argument(help="One question; without it, a conversation.", show_default=False)
    ] = None,
    name: NameOption = None,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.", show_default=False)] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens.", show_default=False)] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=2.0, help="0 = always the likeliest word; higher = more varied.")
    ] = 0.2,
    json: JsonFlag = False,
) -> None:
    """Talk to the model. /reset forgets the conversation, /exit ends it, Ctrl-C stops an answer.

    With a PROMPT, or with text piped in, prints one answer and ends.
    """
    access = find_target(None, name).access()
    interactive = prompt is None and sys.stdin.isatty()
    if interactive and json:
        raise UsageError("--json needs a prompt", next_command='deployctl chat --json "Hello!"')
    with OpenAIClient(access.base_url, access.api_key, access.certificate) as client:
        talk = Conversation(client, access.model, system, temperature, max_tokens)
        if interactive:
            hold_conversation(talk)
            return
        question = prompt if prompt is not None else sys.stdin.read().strip()
        if not question:
            raise UsageError("there is no prompt", next_command='deployctl chat "Hello!"')
        answer = talk.ask(question, show=not json)
        if json:
            emit_json({"model": access.model, "content": answer})


class Conversation:
    """The turns so far. A question whose answer failed is forgotten, so that the next one starts clean."""

    def __init__(
        self,
        client: OpenAIClient,
        model: str,
        system: str | None = None,
        temperature: float = 0.0,
        max_tokens: int | None = None,
    ) -> None:
        self._client = client
        self._model = model
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._opening = [Message("system", system)] if system else []
        self.messages: list[Message] = list(self._opening)

    def reset(self) -> None:
        self.messages = list(self._opening)

    def ask(self, question: str, *, show: bool = True) -> str:
        """Streams the answer to stdout. Ctrl-C keeps what has come so far. Raises EndpointError."""
        asked = [*self.messages, Message("user", question)]
        pieces: list[str] = []
        stream = self._client.stream(self._model, asked, temperature=self._temperature, max_tokens=self._max_tokens)
        try:
            for piece in stream:
                pieces.append(piece)
                if show:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
                if self._max_tokens is None and len(pieces) == PIECES_LIMIT:
                    say(" … cut short; --max-tokens allows longer answers")
                    break
        except KeyboardInterrupt:
            if not pieces:
                raise
            say(" … stopped")
        finally:
            stream.close()
            if show and pieces:
                emit("")
        answer = "".join(pieces)
        self.messages = [*asked, Message("assistant", answer)]
        return answer


def hold_conversation(talk: Conversation) -> None:
    """Reads questions until /exit or the end of the input."""
    say("/reset forgets the conversation, /exit ends it, Ctrl-C stops an answer.")
    while True:
        try:
            question = input(PROMPT).strip()
        except EOFError:
            say()
            return
        except KeyboardInterrupt:
            say("  (/exit ends the conversation)")
            continue
        if question in ("/exit", "/quit"):
            return
        if question == "/reset":
            talk.reset()
            say("forgotten")
        elif question.startswith("/"):
            say(f"{question.split()[0]} is not a command; there are /reset and /exit")
        elif question:
            try:
                talk.ask(question)
            except EndpointError as error:
                say(f"error: {error}")
            except KeyboardInterrupt:
                say("stopped before the first word")
