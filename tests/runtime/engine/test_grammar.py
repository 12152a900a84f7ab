"""Matchers: what a grammar allows at each token, and what ends a request that cannot follow it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from runtime.engine.grammar import GrammarError, Grammars

END = "<|end|>"
DIGITS = "start: /[0-9]{2}/\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Path]:
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=[END], show_progress=False)
    built.train_from_iterator(['{"name": "value"} 12 34'] * 4, trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    built.save(str(folder / "tokenizer.json"))
    return built, folder


@pytest.fixture
def grammars(tokenizer: tuple[Tokenizer, Path]) -> Grammars:
    built, folder = tokenizer
    return Grammars(folder, built.get_vocab_size() + 20, [built.token_to_id(END)])  # models pad their vocabulary


def test_only_tokens_that_lead_on_are_allowed(grammars: Grammars, tokenizer: tuple[Tokenizer, Path]) -> None:
    built, _ = tokenizer
    matcher = grammars.open(DIGITS)
    allowed = matcher.allowed()
    assert allowed.shape == (built.get_vocab_size() + 20,)
    assert allowed[built.token_to_id("7")]
    assert not allowed[built.token_to_id("a")]
    assert not allowed[built.token_to_id(END)]
    assert not allowed[-20:].any()


def test_a_complete_output_may_only_end(grammars: Grammars, tokenizer: tuple[Tokenizer, Path]) -> None:
    built, _ = tokenizer
    matcher = grammars.open(DIGITS)
    for digit in "42":
        matcher.accept(built.token_to_id(digit))
    assert matcher.allowed().nonzero().flatten().tolist() == [built.token_to_id(END)]


def test_a_token_outside_the_grammar_is_an_error(grammars: Grammars, tokenizer: tuple[Tokenizer, Path]) -> None:
    with pytest.raises(GrammarError):
        grammars.open(DIGITS).accept(tokenizer[0].token_to_id("a"))


def test_a_broken_grammar_is_refused(grammars: Grammars) -> None:
    with pytest.raises(GrammarError):
        grammars.open("start: /(/\n")


def test_a_model_that_never_ends_is_refused(tokenizer: tuple[Tokenizer, Path]) -> None:
    with pytest.raises(GrammarError, match="end-of-sequence"):
        Grammars(tokenizer[1], 300, []).open(DIGITS)


def test_matchers_do_not_share_their_state(grammars: Grammars, tokenizer: tuple[Tokenizer, Path]) -> None:
    built, _ = tokenizer
    first, second = grammars.open(DIGITS), grammars.open(DIGITS)
    first.accept(built.token_to_id("1"))
    first.accept(built.token_to_id("2"))
    assert second.allowed()[built.token_to_id("3")]


def test_following_any_allowed_token_ends_in_what_the_schema_says(
    grammars: Grammars, tokenizer: tuple[Tokenizer, Path]
) -> None:
    built, _ = tokenizer
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["value", "other"]}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["name", "n"],
        "additionalProperties": False,
    }
    for turn in range(5):
        matcher = grammars.open(f"start: %json {json.dumps(schema)}\n")
        tokens: list[int] = []
        while not tokens or tokens[-1] != built.token_to_id(END):
            choices = matcher.allowed().nonzero().flatten().tolist()
            tokens.append(choices[(turn * 7 + len(tokens)) % len(choices)])
            matcher.accept(tokens[-1])
        found = json.loads(built.decode(tokens))
        assert found["name"] in ("value", "other")
        assert 0 <= found["n"] <= 9
