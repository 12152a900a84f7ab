"""Incremental text equals the text of all tokens at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from runtime.server.detokenizer import Detokenizer
from runtime.server.logprobs import TokenTexts


def stream(tokenizer: Tokenizer, ids: list[int], context: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(TokenTexts(tokenizer), context or ())
    return [*map(detokenizer.step, ids), detokenizer.flush()]


@pytest.fixture(scope="module")
def metaspace() -> Tokenizer:
    """A SentencePiece-like decoder: ▁ is a space, the first one of a text is dropped, bytes fall back."""
    vocabulary = {"▁": 0, "a": 1, "▁a": 2, "<0xC3>": 3, "<0xA9>": 4, "<unk>": 5}
    built = Tokenizer(models.BPE(vocabulary, [("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    built.decoder = decoders.Sequence(parts)
    return built


@given(text=st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_the_pieces_of_any_text_add_up_to_it(tokenizer: Tokenizer, text: str) -> None:
    assert "".join(stream(tokenizer, tokenizer.encode(text).ids)) == text


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_pieces_of_any_tokens_add_up_to_decoding_them_at_once(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=20))
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_character_appears_with_its_last_byte(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("é").ids
    assert len(ids) == 2
    assert stream(tokenizer, ids) == ["", "é", ""]


def test_bytes_that_never_become_a_character_appear_at_the_end(tokenizer: Tokenizer) -> None:
    assert stream(tokenizer, tokenizer.encode("é").ids[:1]) == ["", "\ufffd"]


def test_special_tokens_are_not_shown(tokenizer: Tokenizer, eos: int) -> None:
    assert "".join(stream(tokenizer, [*tokenizer.encode("the").ids, eos])) == "the"


def test_a_continued_prompt_keeps_the_space_before_its_first_new_word(metaspace: Tokenizer) -> None:
    assert "".join(stream(metaspace, [2, 2])) == "a a"
    assert "".join(stream(metaspace, [2, 2], context=[1, 1])) == " a a"


def test_a_prompt_that_ends_inside_a_character_does_not_come_back(metaspace: Tokenizer) -> None:
    assert "a" not in "".join(stream(metaspace, [4], context=[1, 3]))


def test_a_prompt_of_special_tokens_alone_leaves_the_first_word_without_a_space(metaspace: Tokenizer) -> None:
    metaspace.add_special_tokens(["<s>"])
    start = metaspace.token_to_id("<s>")
    assert start is not None
    assert "".join(stream(metaspace, [2, 2], context=[start])) == "a a"


def test_characters_beside_broken_ones_are_not_lost(metaspace: Tokenizer) -> None:
    assert "".join(stream(metaspace, [3, 3, 4, 4, 2])) == "\ufffdé\ufffd a"
