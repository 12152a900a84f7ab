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
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from runtime.server import limits

Prompt = str | list[int]  # text, or token ids
Bias = tuple[tuple[int, float], ...]  # (token id, what is added to its logit)


class Body(BaseModel):
    """Strict: "0.7" is not a number, 1 is not a bool, and nothing unknown is dropped in silence."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Neutral:
    """Accepts only the values that ask for nothing; the field is refused by name otherwise."""

    def __init__(self, *values: object) -> None:
        self._values = values

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, _: CoreSchema, __: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"enum": list(self._values)}

    def _check(self, value: object) -> object:
        if any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in self._values):
            return value
        raise PydanticCustomError(
            "not_yet",
            "not supported yet; leave it out or send {neutral}",
            {"neutral": " or ".join("null" if known is None else repr(known) for known in self._values)},
        )


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


def _biases(value: object) -> Bias:
    """{"token id": bias} as pairs; JSON's keys are text."""
    if value is None:
        return ()
    if not isinstance(value, dict) or len(value) > limits.MAX_BIASES:
        raise ValueError(f"must be a map of at most {limits.MAX_BIASES} token ids to numbers from -100 to 100")
    pairs = []
    for token, bias in value.items():
        if not token.isdecimal():
            raise ValueError("its keys must be token ids, written as text")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ValueError("its values must be numbers from -100 to 100")
        pairs.append((int(token), float(bias)))
    return tuple(pairs)


def _stop_text(text: str) -> str:
    if not 1 <= len(text) <= limits.MAX_STOP_CHARS:
        raise ValueError(f"a stop string has 1 to {limits.MAX_STOP_CHARS} characters, this one {len(text)}")
    return text


def _reject_part(value: object) -> object:
    if value != "text":
        raise PydanticCustomError("not_text", "only text parts are supported; this model reads no other input")
    return value


Off = Annotated[Any, Neutral(None, False)]
Zero = Annotated[Any, Neutral(None, 0)]
One = Annotated[Any, Neutral(None, 1)]
Empty = Annotated[Any, Neutral(None, [], {})]
Null = Annotated[Any, Neutral(None)]
STRUCTURED = ("response_format", "guided_json", "guided_regex", "guided_choice")
Tokens = Annotated[int, Field(ge=1, le=limits.MAX_COUNT)]
TokenId = Annotated[int, Field(ge=0, le=limits.MAX_COUNT)]
# What clients may send, for the document of the API, where a validator takes more forms than the field's type says.
StopText = Annotated[
    str,
    AfterValidator(_stop_text),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": limits.MAX_STOP_CHARS}),
]
_StopsGiven = StopText | Annotated[list[StopText], Field(max_length=limits.MAX_STOPS)] | None
_StopIdsGiven = Annotated[list[TokenId], Field(max_length=limits.MAX_STOP_TOKEN_IDS)] | None
_Ids = Annotated[list[TokenId], Field(min_length=1)]
_PromptsGiven = (
    str
    | _Ids
    | Annotated[list[str], Field(min_length=1, max_length=limits.MAX_PROMPTS)]
    | Annotated[list[_Ids], Field(min_length=1, max_length=limits.MAX_PROMPTS)]
)
_BiasesGiven = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": ["object", "null"],
            "patternProperties": {"^[0-9]+$": {"type": "number", "minimum": -100, "maximum": 100}},
            "additionalProperties": False,
            "maxProperties": limits.MAX_BIASES,
        }
    ),
]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


class StreamOptions(Body):
    """`stream_options`."""

    include_usage: bool = False
    continuous_usage_stats: Off = False
    include_obfuscation: Off = False


class NamedSchema(Body):
    """The inside of `response_format` of type json_schema."""

    name: str
    description: str | None = None
    content: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class TextFormat(Body):
    """`response_format` that asks for nothing."""

    type: Literal["text"]


class ObjectFormat(Body):
    """`response_format` of any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Body):
    """`response_format` of a JSON Schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class GenerationBody(Body):
    """What chat and completions share. None of a number means the default of the API."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=limits.MAX_COUNT)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Seed | None = None
    max_tokens: Tokens | None = None
    min_tokens: Annotated[int, Field(ge=0, le=limits.MAX_COUNT)] | None = None
    ignore_eos: bool | None = None
    stop: Annotated[
        list[StopText],
        BeforeValidator(_listed, json_schema_input_type=_StopsGiven),
        Field(max_length=limits.MAX_STOPS),
    ] = []
    stop_token_ids: Annotated[
        list[TokenId],
        BeforeValidator(lambda value: [] if value is None else value, json_schema_input_type=_StopIdsGiven),
        Field(max_length=limits.MAX_STOP_TOKEN_IDS),
    ] = []
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    n: Annotated[int, Field(ge=1, le=limits.MAX_CHOICES)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    logit_bias: Annotated[Bias, PlainValidator(_biases, json_schema_input_type=_BiasesGiven)] = ()

    length_penalty: One = None
    response_format: Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Field(max_length=limits.MAX_GUIDED_CHOICES)] | None = None
    prompt_logprobs: Null = None
    use_beam_search: Off = None
    include_stop_str_in_output: Off = None
    skip_special_tokens: Annotated[Any, Neutral(None, True)] = None
    spaces_between_special_tokens: Annotated[Any, Neutral(None, True)] = None
    truncate_prompt_tokens: Null = None
    priority: Zero = None

    @model_validator(mode="after")
    def _agree(self) -> GenerationBody:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "stream_options needs stream: true")
        asked = [name for name in STRUCTURED if getattr(self, name) is not None]
        if isinstance(self.response_format, TextFormat):
            asked.remove("response_format")
        if len(asked) > 1:
            raise PydanticCustomError(
                "structured", "{names} ask for different forms; send one", {"names": ", ".join(asked)}
            )
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(Body):
    """One part of a message's content."""

    type: Annotated[Literal["text"], BeforeValidator(_reject_part, json_schema_input_type=Literal["text"])]
    text: str


_ContentGiven = str | list[TextPart] | None


class CalledFunction(Body):
    """Name and arguments (JSON text) of a call that an earlier answer made.

    `parsed_arguments`: what the openai package read in them; it sends it back with the answer, and it asks for nothing.
    """

    name: str
    arguments: str
    parsed_arguments: Any = None


class ToolCall(Body):
    """One entry of an earlier answer's `tool_calls`."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Annotated[int, Field(ge=0, le=limits.MAX_COUNT)] | None = None


class Message(Body):
    """One turn of a chat. `parsed`: what the openai package read in `content`, sent back with an answer."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[list[TextPart], BeforeValidator(_parts, json_schema_input_type=_ContentGiven)] = []
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=limits.MAX_TOOLS)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    function_call: Null = None
    refusal: Null = None
    audio: Null = None
    annotations: Empty = None
    parsed: Any = None

    @model_validator(mode="after")
    def _belongs(self) -> Message:
        if self.role == "tool" and self.tool_call_id is None:
            raise PydanticCustomError("tool_call_id", "a tool's message needs tool_call_id")
        if self.tool_calls and self.role != "assistant":
            raise PydanticCustomError("tool_calls", "only an assistant's message has tool_calls")
        return self

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.content)


class FunctionTool(Body):
    """What a tool is called, does and takes. `parameters`: JSON Schema of its arguments."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """One entry of `tools`."""

    type: Literal["function"]
    function: FunctionTool


def _small_tools(tools: list[Tool]) -> list[Tool]:
    size = sum(len(tool.model_dump_json(exclude_none=True)) for tool in tools)
    if size > limits.MAX_TOOL_BYTES:
        raise ValueError(f"the tools have {size} bytes of JSON, over the limit of {limits.MAX_TOOL_BYTES}")
    return tools


class FunctionName(Body):
    """The inside of a named `tool_choice`."""

    name: str


class NamedTool(Body):
    """`tool_choice` of one tool."""

    type: Literal["function"]
    function: FunctionName


class TemplateOptions(Body):
    """`chat_template_kwargs`: what clients may tell a chat template."""

    enable_thinking: bool | None = None


class ChatBody(GenerationBody):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=limits.MAX_MESSAGES)]
    max_completion_tokens: Tokens | None = None

    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=limits.MAX_LOGPROBS)] | None = None

    tools: Annotated[list[Tool], Field(max_length=limits.MAX_TOOLS), AfterValidator(_small_tools)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: TemplateOptions = TemplateOptions()

    functions: Empty = None
    function_call: Annotated[Any, Neutral(None, "none")] = None
    modalities: Annotated[Any, Neutral(None, ["text"])] = None
    audio: Null = None
    prediction: Null = None
    store: Off = None
    metadata: Empty = None
    service_tier: Annotated[Any, Neutral(None, "auto", "default")] = None
    reasoning_effort: Null = None
    add_generation_prompt: Annotated[Any, Neutral(None, True)] = None
    continue_final_message: Off = None
    echo: Off = None

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "top_logprobs needs logprobs: true")
        return self

    @property
    def wanted_logprobs(self) -> int | None:
        """How many of the most probable tokens to report; None = no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(GenerationBody):
    """`POST /v1/completions`."""

    prompt: Annotated[list[Prompt], PlainValidator(_prompts, json_schema_input_type=_PromptsGiven)]

    logprobs: Annotated[int, Field(ge=0, le=limits.MAX_LOGPROBS)] | None = None
    echo: bool | None = None

    best_of: One = None
    suffix: Annotated[Any, Neutral(None, "")] = None

    @model_validator(mode="after")
    def _echo_alone(self) -> CompletionBody:
        if self.echo and self.logprobs is not None:
            raise PydanticCustomError(
                "echo", "echo together with logprobs needs log-probabilities of the prompt, which are not computed"
            )
        return self

    @property
    def wanted_logprobs(self) -> int | None:
        """How many of the most probable tokens to report; None = no log-probabilities."""
        return self.logprobs


class TokenizeBody(Body):
    """`POST /tokenize`: a text, or messages as the chat template writes them."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=limits.MAX_MESSAGES)] | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _one(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise PydanticCustomError("tokenize", "send either prompt or messages")
        return self


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(max_length=limits.MAX_TOKENS)]
