"""Request bodies of the OpenAI API.

An unknown field is an error; a known one that this version does not honour is an error too, unless it carries
the value that asks for nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from runtime.server import limits

Prompt = str | list[int]  # text, or token ids


class Body(BaseModel):
    """Strict: "0.7" is not a number, 1 is not a bool, and nothing unknown is dropped in silence."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


def neutral(*values: object) -> AfterValidator:
    """Accepts only the values that ask for nothing; the field is refused by name otherwise."""

    def check(value: object) -> object:
        if any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in values):
            return value
        raise PydanticCustomError(
            "not_yet",
            "not supported yet; leave it out or send {neutral}",
            {"neutral": " or ".join("null" if known is None else repr(known) for known in values)},
        )

    return AfterValidator(check)


def _listed(value: object) -> object:
    """A lone string stands for a list of one."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


def _parts(value: object) -> object:
    """Text content as a list of one part, so that errors have one path."""
    if value is None:
        return []
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _prompts(value: object) -> list[Prompt]:
    """str, [str, …], [id, …] or [[id, …], …] as a list of prompts. Ids are checked here in one pass,
    because a union of list types would name every branch in its errors."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("must be text, a list of texts, a list of token ids, or a list of such lists")
    if all(type(item) is int for item in value):
        return [value]
    if len(value) > limits.MAX_PROMPTS:
        raise ValueError(f"{len(value)} prompts are over the limit of {limits.MAX_PROMPTS}")
    if all(isinstance(item, str) for item in value):
        return list(value)
    if all(isinstance(item, list) and item and all(type(token) is int for token in item) for item in value):
        return list(value)
    raise ValueError("its items must be all texts, all token ids, or all lists of token ids, none empty")


def _stop_text(text: str) -> str:
    if not 1 <= len(text) <= limits.MAX_STOP_CHARS:
        raise ValueError(f"a stop string has 1 to {limits.MAX_STOP_CHARS} characters, this one {len(text)}")
    return text


def _reject_part(value: object) -> object:
    if value != "text":
        raise PydanticCustomError("not_text", "only text parts are supported; this model reads no other input")
    return value


Off = Annotated[Any, neutral(None, False)]
Zero = Annotated[Any, neutral(None, 0)]
One = Annotated[Any, neutral(None, 1)]
Empty = Annotated[Any, neutral(None, [], {})]
Null = Annotated[Any, neutral(None)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


class StreamOptions(Body):
    """`stream_options`."""

    include_usage: bool = False
    continuous_usage_stats: Off = False
    include_obfuscation: Off = False


class GenerationBody(Body):
    """What chat and completions share. None of a number means the default of the API."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Seed | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    stop: Annotated[
        list[Annotated[str, AfterValidator(_stop_text)]],
        BeforeValidator(_listed),
        Field(max_length=limits.MAX_STOPS),
    ] = []
    stop_token_ids: Annotated[
        list[Annotated[int, Field(ge=0)]],
        BeforeValidator(lambda value: [] if value is None else value),
        Field(max_length=limits.MAX_STOP_TOKEN_IDS),
    ] = []
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    n: One = None
    presence_penalty: Zero = None
    frequency_penalty: Zero = None
    repetition_penalty: One = None
    length_penalty: One = None
    logit_bias: Empty = None
    response_format: Annotated[Any, neutral(None, {"type": "text"})] = None
    prompt_logprobs: Null = None
    use_beam_search: Off = None
    include_stop_str_in_output: Off = None
    skip_special_tokens: Annotated[Any, neutral(None, True)] = None
    spaces_between_special_tokens: Annotated[Any, neutral(None, True)] = None
    truncate_prompt_tokens: Null = None
    priority: Zero = None

    @model_validator(mode="after")
    def _agree(self) -> GenerationBody:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "stream_options needs stream: true")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(Body):
    """One part of a message's content."""

    type: Annotated[Literal["text"], BeforeValidator(_reject_part)]
    text: str


class Message(Body):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_parts)] = []
    name: str | None = None
    tool_calls: Empty = None
    function_call: Null = None
    refusal: Null = None
    audio: Null = None
    reasoning_content: Null = None

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.content)


class ChatBody(GenerationBody):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=limits.MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    logprobs: Off = None
    top_logprobs: Zero = None
    tools: Empty = None
    tool_choice: Annotated[Any, neutral(None, "none")] = None
    parallel_tool_calls: Annotated[Any, neutral(None, True)] = None
    functions: Empty = None
    function_call: Annotated[Any, neutral(None, "none")] = None
    modalities: Annotated[Any, neutral(None, ["text"])] = None
    audio: Null = None
    prediction: Null = None
    store: Off = None
    metadata: Empty = None
    service_tier: Annotated[Any, neutral(None, "auto", "default")] = None
    reasoning_effort: Null = None
    chat_template_kwargs: Empty = None
    add_generation_prompt: Annotated[Any, neutral(None, True)] = None
    continue_final_message: Off = None
    echo: Off = None


class CompletionBody(GenerationBody):
    """`POST /v1/completions`."""

    prompt: Annotated[list[Prompt], PlainValidator(_prompts)]

    logprobs: Null = None
    echo: Off = None
    best_of: One = None
    suffix: Annotated[Any, neutral(None, "")] = None
