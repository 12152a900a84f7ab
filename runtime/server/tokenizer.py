"""A checkpoint's tokenizer and chat template, read from its folder without transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from runtime.server.chat_template import ChatTemplate, ChatTemplateError
from runtime.server.detokenizer import Detokenizer
from runtime.server.logprobs import TokenTexts
from runtime.server.output_parser import CALL, END_THINK, THINK, ToolFormat

_TEMPLATE_FILE = "chat_template.jinja"
_SAMPLE = "One, two: 3 wörds\n\t你好 🎉"


class TokenizerError(Exception):
    """The folder's tokenizer cannot be used; the text names the file."""


class PromptError(ValueError):
    """A prompt that cannot be tokenized."""


class PromptTooLongError(PromptError):
    """A prompt that cannot fit, found before it was tokenized."""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Token ids of a chat. `in_thought`: the prompt ends where the model's thoughts begin; `past_thought`: it ends
    after thoughts that it has closed itself."""

    ids: list[int]
    in_thought: bool = False
    past_thought: bool = False


class ModelTokenizer:
    """Text to token ids for one model. Thread-safe: nothing changes after construction."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self.tokenizer = tokenizer
        self.texts = TokenTexts(tokenizer)
        self._template = template
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self._longest_token = max((len(token) for token in vocabulary), default=1)  # characters

    @classmethod
    def load(cls, folder: Path) -> ModelTokenizer:
        """Reads tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja.

        Raises TokenizerError.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(f"{path} is missing")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises a bare Exception for any fault of the file
            raise TokenizerError(f"{path}: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config = _read_json(folder / "tokenizer_config.json")
        special_tokens = _special_tokens(_read_json(folder / "special_tokens_map.json") | config)
        source = _template_source(folder, config)
        try:
            template = None if source is None else ChatTemplate(source, special_tokens)
        except ChatTemplateError as error:
            raise TokenizerError(f"{folder}: {error}") from error
        loaded = cls(tokenizer, template)
        if not loaded._streams_as_decoded():
            raise TokenizerError(f"{path}: text in a form that is unknown here: {_name_of(tokenizer.decoder)}")
        return loaded

    def _streams_as_decoded(self) -> bool:
        """A text comes out token by token as the library writes it at once."""
        ids = self.tokenizer.encode(_SAMPLE, add_special_tokens=False).ids
        detokenizer = Detokenizer(self.texts)
        return "".join([*map(detokenizer.step, ids), detokenizer.flush()]) == self.text_of(ids)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, bool] | None = None,
    ) -> ChatPrompt:
        """Renders and tokenizes. The template writes the special tokens, so none is added.

        Raises PromptError.
        """
        if self._template is None:
            raise PromptError("this model has no chat template; use /v1/completions")
        if self.tool_format is None and any("tool_calls" in turn or turn["role"] == "tool" for turn in messages):
            raise PromptError("this model's chat template knows no tools, so it cannot show calls and their results")
        try:
            text = self._template.render(messages, tools, options)
        except ChatTemplateError as error:
            raise PromptError(str(error)) from error
        ids = self._encode(text, max_tokens, add_special_tokens=False)
        end = text.rstrip()
        return ChatPrompt(ids, in_thought=end.endswith(THINK), past_thought=end.endswith(END_THINK))

    @property
    def thinks(self) -> bool:
        """The chat template knows marked thoughts, so the model writes them."""
        return self._template is not None and END_THINK in self._template.source

    @property
    def tool_format(self) -> ToolFormat | None:
        """How the model was taught to call tools, as its chat template shows; None when it names no tools."""
        source = self._template.source if self._template is not None else ""
        if not re.search(r"\btools\b", source):
            return None
        return "hermes" if CALL in source else "llama3" if "python_tag" in source or '"parameters"' in source else None

    @property
    def can_skip_thoughts(self) -> bool:
        """The chat template knows `enable_thinking`."""
        return self._template is not None and "enable_thinking" in self._template.source

    def encode_text(self, text: str, max_tokens: int, *, add_special_tokens: bool = True) -> list[int]:
        """Tokenizes a bare prompt, by default with the special tokens that the model expects. Raises PromptError."""
        return self._encode(text, max_tokens, add_special_tokens=add_special_tokens)

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out, as answers show it."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    @property
    def vocab_size(self) -> int:
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    def _encode(self, text: str, max_tokens: int, *, add_special_tokens: bool) -> list[int]:
        # No token is longer than the longest one, so this refuses only what could not fit; it spares the
        # time to tokenize megabytes.
        at_least = len(text) // self._longest_token
        if at_least > max_tokens:
            raise PromptTooLongError(
                f"the prompt has {len(text)} characters, at least {at_least} tokens; the limit is {max_tokens} tokens"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(f"the prompt is not valid Unicode at character {error.start}") from error
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids


def _name_of(decoder: object) -> str:
    return "no decoder" if decoder is None else f"decoder {type(decoder).__name__}"


def _template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja wins over the config's entry, which is text or a list of named templates."""
    file = folder / _TEMPLATE_FILE
    if file.is_file():
        return file.read_text("utf-8")
    source = config.get("chat_template")
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default")
    return source


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, … as text; a file may hold text or {"content": text}."""
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
    found: dict[str, str] = {}
    for name in names:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            found[name] = value
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise TokenizerError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path}: must hold a JSON object")
    return content
